"""Stage 2: train a student from a cache, or from the teacher itself."""
