"""Tar members as bytes. USTAR, mtime = uid = gid = 0: the same input gives the same bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import lru_cache

from pipeline.errors import CorruptCache

BLOCK = 512
END = bytes(2 * BLOCK)  # end-of-archive marker
NAME, SIZE = slice(0, 100), slice(124, 135)  # fields of a header


def member(name: str, data: bytes) -> bytes:
    """One regular file: header, data, zeros up to the next block."""
    return header(name, len(data)) + data + bytes(-len(data) % BLOCK)


@lru_cache(maxsize=1024)  # names and sizes recur from shard to shard
def header(name: str, size: int) -> bytes:
    """The one header that this format has for a file."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def parse(extent: bytes) -> Iterator[tuple[str, memoryview]]:
    """(name, data) of the members that tile `extent` exactly.

    Raises CorruptCache for anything but what `member` writes: a header that says more than a name and a size (links,
    sparse files, devices, long names, bytes behind a NUL) is another one, and nothing may hide in the padding.
    """
    view, at = memoryview(extent), 0
    while at < len(view):
        block = bytes(view[at : at + BLOCK])
        try:
            name, size = block[NAME].rstrip(b"\0").decode(), int(block[SIZE], 8)
            plain = size >= 0 and header(name, size) == block
        except ValueError:  # no number, no UTF-8
            plain = False
        start = at + BLOCK
        if not plain or start + size > len(view):
            raise CorruptCache(f"tar header at byte {at} of an extent: not a plain file that fits it")
        at = start + -(-size // BLOCK) * BLOCK
        if at > len(view) or bytes(view[start + size : at]).strip(b"\0"):
            raise CorruptCache(f"tar member {name!r}: no zeros up to the next block behind it")
        yield name, view[start : start + size]
