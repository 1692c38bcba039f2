"""A shard as a read-only zarr store, in place: `zarr.open_group(TarStore(path), mode="r")`.

fsspec's tar:// opens shards too, but returned wrong bytes under zarr's concurrency (one file position shared by all
readers); positional reads have no position to share.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from pipeline.cache.tarfmt import BLOCK, END
from pipeline.errors import CorruptCache


class TarStore(Store):
    """zarr Store over the members of an uncompressed tar file."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, path: str | Path) -> None:
        super().__init__(read_only=True)
        self.path = Path(path)
        with tarfile.open(self.path, "r:") as tar:
            members = [info for info in tar if info.isreg() and not info.issparse()]
        self._extents = {info.name: (info.offset_data, info.size) for info in members}
        self._handle = os.open(self.path, os.O_RDONLY)
        end = max((offset + -(-size // BLOCK) * BLOCK for offset, size in self._extents.values()), default=0)
        # A tar cut between two members looks whole to tarfile, and zarr reads what is missing as zeros.
        if os.pread(self._handle, len(END) + 1, end) != END:
            raise CorruptCache(f"{self.path}: no end-of-archive marker behind its last member; it was truncated")

    def close(self) -> None:
        super().close()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TarStore) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"TarStore({str(self.path)!r})"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key not in self._extents:
            return None
        offset, size = self._extents[key]
        start, stop = 0, size
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, min(byte_range.end, size)
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = max(0, size - byte_range.suffix)
        return prototype.buffer.from_bytes(os.pread(self._handle, max(0, stop - start), offset + start))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self._extents

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError("a shard is read-only")

    async def delete(self, key: str) -> None:
        raise NotImplementedError("a shard is read-only")

    async def list(self) -> AsyncIterator[str]:
        for key in self._extents:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._extents:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        prefix = prefix.rstrip("/") + "/" if prefix else ""
        for name in dict.fromkeys(k[len(prefix) :].split("/")[0] for k in self._extents if k.startswith(prefix)):
            yield name
