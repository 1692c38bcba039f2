"""Storage of a cache: local folders, object stores, web servers, the disk cache for remote reads, and locks."""
