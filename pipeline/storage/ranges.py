"""Read the extents of one shard, from a local file with os.pread or from a remote storage by range.

A remote request takes tens of milliseconds, even for a few bytes. Extents are therefore fetched together:

* Sequential reads (a whole shard, for export or verification) request AHEAD bytes at a time.
* Samples of a training step are merged into one request if they are less than GAP bytes apart
  (pipeline/cache/prefetch.py).
* With a disk cache, whole blocks of BLOCK bytes are fetched, because training will need the whole shard.

docs/results/remote.json has the number of requests per sample.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from io import FileIO
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from pipeline.errors import CacheError, CorruptCache, StoreError
from pipeline.storage.base import DELETE, ShardLayout, Storage
from pipeline.storage.disk_cache import DiskCache
from pipeline.storage.extents import Extent, Fetched
from pipeline.storage.regular import open_regular

AHEAD = BLOCK = 4 << 20
GAP = 32 << 10
NOTHING: Fetched = MappingProxyType({})


def read_verified(read: Callable[[Extent], bytes], extent: Extent, fetched: Fetched = NOTHING) -> bytes | None:
    """Return the bytes of an extent, from what was fetched or by `read`; None where size or checksum differs."""
    data = fetched.get(extent.offset, b"")
    if not extent.matches(data):
        data = read(extent)
    return data if extent.matches(data) else None


class LocalRanges:
    """A file on this machine. Thread-safe: reads are positional."""

    local: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # FileIO, not a descriptor, so the file is closed with the last reference
            self._file = FileIO(open_regular(path), "r")
        except FileNotFoundError as error:
            raise CacheError(f"{path}: missing; expected a shard of the cache") from error
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror or error}); solve this and retry") from error
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, extent: Extent) -> bytes:
        try:
            return os.pread(self._file.fileno(), extent.size, extent.offset)
        except OSError as error:
            raise StoreError(
                f"{self._path}: bytes {extent.offset}-{extent.offset + extent.size} cannot be read ({error.strerror}); "
                "retry; if the disk is damaged, delete the file and run `python -m pipeline repair --config C`"
            ) from error

    def fetches(self, extents: Sequence[Extent]) -> list[Callable[[], Fetched]]:
        return []

    def close(self) -> None:
        self._file.close()


class RemoteRanges:
    """A file of a remote storage. Thread-safe. `disk`: the disk cache for its shards, or None."""

    local: ClassVar[bool] = False

    def __init__(self, storage: Storage, key: str, layout: ShardLayout, disk: DiskCache | None) -> None:
        self._storage, self._key, self._layout, self._disk = storage, key, layout, disk
        self._ahead = (0, b"")  # offset and bytes of the last range that was read ahead
        self._next = -1
        if self._disk:
            self._disk.touch(layout.sha256)
        self.size = layout.size  # compared with the server's size at each request

    def read(self, extent: Extent) -> bytes:
        """Read one extent. Sequential reads use a range that was read ahead."""
        data = self._fetch([extent])[extent.offset] if self._disk else self._read_ahead(extent)
        if not extent.matches(data):  # retry once: the transfer may have corrupted it
            self._ahead = (0, b"")
            data = self._range(extent.offset, extent.size)
        return data

    def _read_ahead(self, extent: Extent) -> bytes:
        start, data = self._ahead
        if not start <= extent.offset <= extent.offset + extent.size <= start + len(data):
            sequential = extent.offset == self._next
            start, data = extent.offset, self._range(extent.offset, max(extent.size, AHEAD if sequential else 0))
            self._ahead = (start, data) if sequential else (0, b"")
        self._next = extent.offset + extent.size
        return data[extent.offset - start :][: extent.size]

    def fetches(self, extents: Sequence[Extent]) -> list[Callable[[], Fetched]]:
        """Return calls, one for each request, that prefetch these extents."""
        ordered = sorted(set(extents), key=lambda extent: extent.offset)
        if self._disk:
            runs = [list(group) for _, group in groupby(ordered, key=lambda extent: extent.offset // BLOCK)]
        else:
            runs = group_neighbours(ordered, GAP, AHEAD)
        return [partial(self._fetch, run) for run in runs]

    def _fetch(self, run: Sequence[Extent]) -> dict[int, bytes]:
        """Fetch a run of extents, from the disk cache or by range."""
        found: dict[int, bytes] = {}
        if self._disk:
            stored = {extent.offset: self._disk.read(self._layout.sha256, extent) for extent in run}
            found = {offset: data for offset, data in stored.items() if data}
        missing = [extent for extent in run if extent.offset not in found]
        if self._disk and missing:
            blocks = {extent.offset // BLOCK for extent in missing}
            in_blocks = [extent for extent in self._layout.extents if extent.offset // BLOCK in blocks]
            start, end = in_blocks[0].offset, in_blocks[-1].offset + in_blocks[-1].size
            if self._disk.room(end - start):
                data = self._range(start, end - start)
                self._disk.keep(self._layout.sha256, start, data)
                return found | {e.offset: data[e.offset - start :][: e.size] for e in missing}
        for part in group_neighbours(missing, GAP, AHEAD):
            start = part[0].offset
            data = self._range(start, part[-1].offset + part[-1].size - start)
            found |= {e.offset: data[e.offset - start :][: e.size] for e in part}
        return found

    def _range(self, offset: int, size: int) -> bytes:
        path, size = self._storage.describe(self._key), min(size, self.size - offset)
        try:
            data, file_size = self._storage.read_range(self._key, offset, size)
        except FileNotFoundError:
            raise CacheError(f"{path}: missing; expected a shard of the cache") from None
        if file_size != self.size or len(data) != size:
            remedy = self._storage.remedy(self._key, DELETE)
            raise CorruptCache(f"{path}: expected {self.size} bytes, found {file_size}; {remedy}")
        return data

    def close(self) -> None:
        self._ahead = (0, b"")


def group_neighbours(extents: Sequence[Extent], gap: int, largest: int) -> list[list[Extent]]:
    """Group ordered extents into runs with gaps of less than `gap` bytes.

    A run has at most `largest` bytes in total, or one extent.
    """
    runs: list[list[Extent]] = []
    for extent in extents:
        if runs:
            first, last = runs[-1][0], runs[-1][-1]
            near = extent.offset - (last.offset + last.size) < gap
            if near and extent.offset + extent.size - first.offset <= largest:
                runs[-1].append(extent)
                continue
        runs.append([extent])
    return runs
