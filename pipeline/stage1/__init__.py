"""Stage 1: run the teacher once over every view and leave a verified cache."""
