"""A bounded folder of what was read from afar, so that the second epoch reads the disk. Shared by any processes.

One sparse file a shard, named by the sha256 of the shard, each extent at its own place. Nothing says which parts are
there: an extent is taken when its crc32c is right, and a hole, a torn write or a flipped bit is a miss. So writers need
no lock, no order and no fsync, and bad bytes cannot be served.

An epoch reads every sample once, in another order each time; throwing out what was used longest ago would throw out
just what comes next. So what this run has used stays, and when the folder is full of it nothing more is taken in.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from google_crc32c import value as crc32c

from pipeline.storage.client import Store

if TYPE_CHECKING:
    from pipeline.storage.base import Extent

PAGE = 4096
NAME = re.compile(r"[0-9a-f]{64}(\.json)?")  # other files of the folder are not ours
FULL = 10.0  # seconds before a full folder is searched again for something to throw out


class Disk:
    """`limit` bytes in `folder`. `begun`: files used since are not thrown out (time.time() of the run's start)."""

    def __init__(self, folder: str, limit: int, begun: float) -> None:
        self._folder, self._limit, self._begun = Path(folder), limit, begun
        self._full_until = 0.0
        self._folder.mkdir(parents=True, exist_ok=True)

    def touch(self, sha256: str) -> None:
        """Mark a shard as used by this run."""
        with suppress(OSError):
            os.utime(self._folder / sha256)

    def read(self, sha256: str, extent: Extent) -> bytes | None:
        """The extent of a shard, or None where it is not here, whole and right."""
        try:
            handle = os.open(self._folder / sha256, os.O_RDONLY)
        except OSError:
            return None
        try:
            data = os.pread(handle, extent.size, extent.offset)
        except OSError:
            return None
        finally:
            os.close(handle)
        return data if len(data) == extent.size and crc32c(data) == extent.crc32c else None

    def keep(self, sha256: str, offset: int, data: bytes) -> None:
        """Take in a part of a shard, where it fits below the bound. A full disk is no error."""
        self._write(sha256, offset, data)

    def read_small(self, sha256: str) -> bytes | None:
        """A small file by its sha256."""
        try:
            data = (self._folder / f"{sha256}.json").read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def keep_small(self, sha256: str, data: bytes) -> None:
        self._write(f"{sha256}.json", 0, data)

    def room(self, size: int) -> bool:
        """Whether `size` more bytes would fit now, what other runs left behind being thrown out for them."""
        if time.monotonic() < self._full_until:
            return False
        try:
            with self._ledger() as (used, put):
                found = self._made_room(used, size)
                put(found)
        except OSError:
            return False
        if found + pages(size) > self._limit:
            self._full_until = time.monotonic() + FULL
        return found + pages(size) <= self._limit

    def _write(self, name: str, offset: int, data: bytes) -> None:
        if time.monotonic() < self._full_until:
            return
        with suppress(OSError), self._ledger() as (used, put):  # counted and written before another process looks
            found = self._made_room(used, len(data))
            put(found)
            if found + pages(len(data)) > self._limit:
                return
            handle = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(handle, data, offset)
            finally:
                os.close(handle)
            put(found + pages(len(data)))

    def _made_room(self, used: int, size: int) -> int:
        """Bytes in use, after a search for what may go where `size` more would not fit."""
        wanted = self._limit - pages(size)
        return used if 0 <= used <= wanted else self._swept(wanted)

    @contextmanager
    def _ledger(self) -> Iterator[tuple[int, Callable[[int], None]]]:
        """The bytes in use (-1: not known) and a function that sets them, while no other process looks."""
        with open(self._folder / ".used", "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read(32)

            def put(used: int) -> None:
                file.truncate(0)
                file.write(str(used).encode())
                file.flush()

            yield int(text) if text.isdigit() else -1, put

    def _swept(self, wanted: int) -> int:
        """Bytes in use, counted anew, after files that this run has not used went, oldest first, down to `wanted`."""
        files = []
        for entry in os.scandir(self._folder):
            if NAME.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    found = entry.stat()
                    files.append((found.st_mtime, 512 * found.st_blocks, entry.path))
        used = sum(size for _, size, _ in files)
        for mtime, size, path in sorted(files):
            if used <= wanted or mtime >= self._begun:
                break
            Path(path).unlink(missing_ok=True)
            used -= size
        return used


def pages(size: int) -> int:
    """Bytes on the disk that `size` bytes may take."""
    return (size // PAGE + 2) * PAGE


@cache
def disk_of(store: Store) -> Disk | None:
    """The disk cache of what is read from a store, where it has one; one object a process."""
    return Disk(store.local, store.local_bytes, store.begun) if store.local else None
