"""Distillation losses, one file each, and the registry of their names."""
