"""A cache that is read through `cache.local`, and what its folder takes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pipeline.cache.cache import Cache
from pipeline.storage.urls import place

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


def read_all(url: str, disk: str, wanted: list[str]) -> None:
    """Read a cache through a disk cache. End the process with 1 if a sample has another digest."""
    if digests(Cache(place(url, local=disk, local_gb=LIMIT))) != wanted:
        os._exit(1)


def used(disk: Path) -> int:
    """Return the bytes that the shards in a `cache.local` take on the disk."""
    total = 0
    for path in disk.iterdir():
        try:
            total += 512 * path.stat().st_blocks if path.name != ".used" else 0
        except FileNotFoundError:  # another process has just removed it
            continue
    return total
