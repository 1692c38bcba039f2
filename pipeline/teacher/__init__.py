"""The teacher: found by name or by files, loaded strictly, measured, and reduced to what FRS needs."""
