"""`reencode`: another quality or profile of a cache, made from the cache itself."""
