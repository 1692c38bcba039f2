"""`reencode`: make a cache of another quality or profile from an existing cache."""
