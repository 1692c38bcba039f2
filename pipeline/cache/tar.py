"""Encode and parse tar members. USTAR with mtime = uid = gid = 0, so equal input gives equal bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import lru_cache

from pipeline.errors import CorruptCache

BLOCK = 512
END = bytes(2 * BLOCK)  # end-of-archive marker
NAME, SIZE = slice(0, 100), slice(124, 135)  # fields of a header


def member(name: str, data: bytes) -> bytes:
    """Encode one regular file: header, data, and zeros up to the next block."""
    return header(name, len(data)) + data + bytes(-len(data) % BLOCK)


@lru_cache(maxsize=1024)  # the same names and sizes occur in many shards
def header(name: str, size: int) -> bytes:
    """Encode the header of a file. This format has exactly one header for each name and size."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def parse(extent: bytes) -> Iterator[tuple[str, memoryview]]:
    """Yield (name, data) of the members in `extent`, which must cover it exactly.

    Raise CorruptCache for everything that `member` does not write: links, sparse files, devices, long names, bytes
    after a NUL, and data in the padding.
    """
    view, at = memoryview(extent), 0
    while at < len(view):
        block = bytes(view[at : at + BLOCK])
        try:
            name, size = block[NAME].rstrip(b"\0").decode(), int(block[SIZE], 8)
            plain = size >= 0 and header(name, size) == block
        except ValueError:  # the size is not a number, or the name is not UTF-8
            plain = False
        start = at + BLOCK
        if not plain or start + size > len(view):
            raise CorruptCache(f"tar header at byte {at} of an extent: not a plain file within the extent")
        at = start + -(-size // BLOCK) * BLOCK
        if at > len(view) or bytes(view[start + size : at]).strip(b"\0"):
            raise CorruptCache(f"tar member {name!r}: padding is not zero")
        yield name, view[start : start + size]
