"""Stage 2: a student, the FRS losses, and a source of teacher outputs that may be a cache or the teacher itself."""
