"""Stage 1: run the teacher once over every view and write a verified cache."""
