"""Tar members as bytes. USTAR, mtime = uid = gid = 0: the same input gives the same bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from pipeline.errors import CorruptCache

BLOCK = 512
END = bytes(2 * BLOCK)  # end-of-archive marker


def member(name: str, data: bytes) -> bytes:
    """One regular file: header, data, zeros up to the next block."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def parse(extent: bytes) -> Iterator[tuple[str, memoryview]]:
    """(name, data) of the members that tile `extent` exactly.

    Raises CorruptCache for anything but plain regular files: no links, sparse files, devices or long names.
    """
    view, at = memoryview(extent), 0
    while at < len(view):
        try:
            info = tarfile.TarInfo.frombuf(bytes(view[at : at + BLOCK]), "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise CorruptCache(f"tar header at byte {at} of an extent: {error}") from error
        start = at + BLOCK
        at = start + -(-info.size // BLOCK) * BLOCK
        if info.type != tarfile.REGTYPE or info.size < 0 or at > len(view):
            raise CorruptCache(f"tar member {info.name!r}: not a plain file that fits its extent")
        yield info.name, view[start : start + info.size]
