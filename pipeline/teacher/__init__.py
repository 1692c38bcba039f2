"""The teacher: find it by name or files, load its weights strictly, measure it, and compute what FRS needs."""
