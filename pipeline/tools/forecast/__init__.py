"""`plan`: forecast the size and duration of a cache from a small trial."""
