"""Size-limited disk cache for remote reads: from the second epoch on, reads are local. Processes can share it.

Each shard is one sparse file, named by the shard's sha256, with every extent at its own offset. There is no index of
the parts that are present. An extent is present if its checksum matches, so a hole, a torn write or a flipped bit is a
miss. Writers therefore need no order and no fsync, and corrupted bytes are never returned.

An epoch reads every sample once, in a different order each time, so the least recently used file is the one that is
needed next. Files that this run has used are therefore never evicted. If they fill the cache, it stores no more files.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from pipeline.budget import BUDGET
from pipeline.errors import CorruptCache
from pipeline.storage.extents import Extent
from pipeline.storage.regular import open_regular, remove

PAGE = 4096
NAME = re.compile(r"[0-9a-f]{64}(\.json)?")  # other files in the folder are left alone
FULL = 10.0  # seconds until a full cache looks for files to evict again


class DiskCache:
    """At most `limit` bytes in `folder`. `begun`: time.time() at the start of the run; files used since then stay."""

    def __init__(self, folder: str, limit: int, begun: float) -> None:
        self._folder, self._limit, self._begun = Path(folder), limit, begun
        self._full_until = 0.0
        self._folder.mkdir(parents=True, exist_ok=True)

    def touch(self, sha256: str) -> None:
        """Mark a shard as used by this run."""
        with suppress(OSError):
            os.utime(self._folder / sha256, follow_symlinks=False)

    def read(self, sha256: str, extent: Extent) -> bytes | None:
        """Return the bytes of an extent; None if it is missing or its checksum differs."""
        try:
            handle = open_regular(self._folder / sha256)
        except (OSError, CorruptCache):
            return None
        try:
            data = os.pread(handle, extent.size, extent.offset)
        except OSError:
            return None
        finally:
            os.close(handle)
        return data if extent.matches(data) else None

    def keep(self, sha256: str, offset: int, data: bytes) -> None:
        """Store a part of a shard if it fits within the limit. Ignores a full disk."""
        self._write(sha256, offset, data)

    def read_small(self, sha256: str) -> bytes | None:
        """Return a small file by its sha256; None if it is missing or differs."""
        try:
            with FileIO(open_regular(self._folder / f"{sha256}.json"), "r") as file:
                data = file.read(BUDGET.plan_bytes)
        except (OSError, CorruptCache):
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def keep_small(self, sha256: str, data: bytes) -> None:
        """Store a small file if it fits within the limit."""
        self._write(f"{sha256}.json", 0, data)

    def room(self, size: int) -> bool:
        """Return whether `size` more bytes fit, after evicting files of earlier runs if necessary."""
        if time.monotonic() < self._full_until:
            return False
        try:
            with self._lock_usage() as (used, set_used):
                found = self._make_room(used, size)
                set_used(found)
        except (OSError, CorruptCache):
            return False
        if found + pages(size) > self._limit:
            self._full_until = time.monotonic() + FULL
        return found + pages(size) <= self._limit

    def _write(self, name: str, offset: int, data: bytes) -> None:
        if time.monotonic() < self._full_until:
            return
        with (
            suppress(OSError, CorruptCache),
            self._lock_usage() as (used, set_used),
        ):  # one process at a time counts and writes
            found = self._make_room(used, len(data))
            set_used(found)
            if found + pages(len(data)) > self._limit:
                return
            handle = open_regular(self._folder / name, os.O_WRONLY | os.O_CREAT)
            try:
                os.pwrite(handle, data, offset)
            finally:
                os.close(handle)
            set_used(found + pages(len(data)))

    def _make_room(self, used: int, size: int) -> int:
        """Evict files if `size` more bytes would not fit. Return the bytes in use."""
        wanted = self._limit - pages(size)
        return used if 0 <= used <= wanted else self._evict(wanted)

    @contextmanager
    def _lock_usage(self) -> Iterator[tuple[int, Callable[[int], None]]]:
        """Yield the bytes in use (-1: not known) and a function that sets them, locked against other processes."""
        with FileIO(open_regular(self._folder / ".used", os.O_RDWR | os.O_CREAT), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read(32)

            def set_used(used: int) -> None:
                file.truncate(0)
                file.seek(0)
                file.write(str(used).encode())

            yield int(text) if text.isdigit() else -1, set_used

    def _evict(self, wanted: int) -> int:
        """Evict unused files, oldest first, until at most `wanted` bytes are in use. Return the bytes in use."""
        files = []
        for entry in os.scandir(self._folder):
            if NAME.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    files.append((found.st_mtime, 512 * found.st_blocks, entry.path))
        used = sum(size for _, size, _ in files)
        for mtime, size, path in sorted(files):
            if used <= wanted or mtime >= self._begun:
                break
            remove(Path(path))
            used -= size
        return used


def pages(size: int) -> int:
    """Return an upper bound of the disk space that `size` bytes take."""
    return (size // PAGE + 2) * PAGE
