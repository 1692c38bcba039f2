"""Read a shard as a zarr store, without unpacking it: `zarr.open_group(TarStore(path), mode="r")`, path or URL.

fsspec's tar:// also opens shards. It returned wrong bytes under zarr's concurrency, because all readers share one file
position. This store uses positional reads instead.
"""

from __future__ import annotations

import asyncio
import os
import re
import tarfile
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.cache.reader import ShardReader
from pipeline.cache.tar import BLOCK, END
from pipeline.errors import CorruptCache
from pipeline.storage.files import local_path
from pipeline.storage.place import Place
from pipeline.storage.urls import place

CHUNK = re.compile(r"(.+/)?(c(/\d+)+|\d+(\.\d+)*)")  # keys of chunks, in zarr's encodings `default` and `v2`


def group_of(files: Mapping[str, bytes]) -> zarr.Group:
    """Return a zarr group made of the contents of its files."""
    content = {name: default_buffer_prototype().buffer.from_bytes(data) for name, data in files.items()}
    return zarr.open_group(MemoryStore(content), mode="r", use_consolidated=False)


class LocalMembers:
    """The members of an uncompressed local tar file."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path, "r:") as tar:
            members = [info for info in tar if info.isreg() and not info.issparse()]
        self._extents = {info.name: (info.offset_data, info.size) for info in members}
        self.names = list(self._extents)
        self._handle = os.open(path, os.O_RDONLY)
        end = max((offset + -(-size // BLOCK) * BLOCK for offset, size in self._extents.values()), default=0)
        # tarfile accepts a tar that ends after any member, and zarr would read the missing chunks as zeros.
        if os.pread(self._handle, len(END) + 1, end) != END:
            self.close()
            raise CorruptCache(f"{path}: truncated: no end-of-archive marker after the last member")

    async def read(self, name: str, start: int, stop: int | None) -> bytes:
        offset, size = self._extents[name]
        stop = size if stop is None else min(stop, size)
        start = max(0, size + start) if start < 0 else start
        return os.pread(self._handle, max(0, stop - start), offset + start)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class RemoteMembers:
    """The members of a remote shard, located by its sidecar: one request per sample, each extent checked."""

    def __init__(self, path: Place) -> None:
        self._reader = ShardReader(path)
        self._head = self._reader.head_files()
        self._samples = {name: n for n in range(len(self._reader)) for name in self._reader.head.members(n)}
        self.names = [*self._head, *self._samples]
        self._members = lru_cache(maxsize=16)(self._reader.members)  # zarr may read a sample's arrays one by one

    async def read(self, name: str, start: int, stop: int | None) -> bytes:
        if name in self._head:
            return self._head[name][start:stop]
        members = await asyncio.to_thread(self._members, self._samples[name])
        return bytes(members[name][start:stop])

    def close(self) -> None:
        self._reader.close()


class TarStore(Store):
    """zarr Store over the members of a shard."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, path: str | Place) -> None:
        super().__init__(read_only=True)
        self.path = place(path)
        local = local_path(self.path)
        self._members = RemoteMembers(self.path) if local is None else LocalMembers(local)
        self._names = dict.fromkeys(self._members.names)

    def close(self) -> None:
        super().close()
        self._members.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Reopen the shard by its path: a file descriptor is another file in another process."""
        local = local_path(self.path)
        return TarStore, (self.path if local is None else local.absolute(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TarStore) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"TarStore({str(self.path)!r})"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key not in self._names:
            if CHUNK.fullmatch(key):  # every chunk is stored; zarr would read a missing one as zeros
                raise CorruptCache(f"{self.path}: no chunk {key}")
            return None
        start, stop = 0, None
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, byte_range.end
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = -byte_range.suffix
        return prototype.buffer.from_bytes(await self._members.read(key, start, stop))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self._names

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError("a shard is read-only")

    async def delete(self, key: str) -> None:
        raise NotImplementedError("a shard is read-only")

    async def list(self) -> AsyncIterator[str]:
        for key in self._names:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._names:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        prefix = prefix.rstrip("/") + "/" if prefix else ""
        for name in dict.fromkeys(k[len(prefix) :].split("/")[0] for k in self._names if k.startswith(prefix)):
            yield name
