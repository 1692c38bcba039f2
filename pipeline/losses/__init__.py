"""Distillation losses: one file a loss, and the registry of their names."""
