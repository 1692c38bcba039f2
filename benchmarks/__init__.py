"""Measurements behind the claims: each script prints a table made side by side in one run, and writes JSON."""
