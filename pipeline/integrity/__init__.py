"""Check that a cache is intact and still equals its teacher's output, and repair damaged files."""
