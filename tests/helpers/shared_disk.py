"""A cache that is read through `cache.local`, and what its folder takes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.cache.cache import Cache

LIMIT = 1.2e-4  # GB: less than the shards of the small cache together


def digests(cache: Cache) -> list[str]:
    """Return the digest of every sample."""
    found = []
    for number in cache.passes():
        for n, refs in enumerate(cache.references(number)):
            for ref in refs:
                stored = cache.shard(number, n).read(ref.index)
                found.append(hashlib.sha256(b"".join(array.tobytes() for array in stored.values())).hexdigest())
    return found


def used(disk: Path) -> int:
    """Return the bytes that the shards in a `cache.local` take on the disk."""
    total = 0
    for path in disk.iterdir():
        try:
            total += 512 * path.stat().st_blocks if path.name != ".used" else 0
        except FileNotFoundError:  # another process has just removed it
            continue
    return total
