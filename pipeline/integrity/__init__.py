"""Is a cache still what was written, and what its teacher says? Check it, and repair what is damaged."""
