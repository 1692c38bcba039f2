"""Read a shard strictly: one read per sample; check its checksum, then its tar members, then decompress it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipeline.cache import tar
from pipeline.cache.arrays import ArraySpec, decode_chunk
from pipeline.cache.head import Head, parse_head
from pipeline.cache.sidecar import Sidecar, load_sidecar
from pipeline.errors import CorruptCache
from pipeline.records import FLIPS, LevelShapes, ViewRecord
from pipeline.storage.base import Extent, Fetched
from pipeline.storage.place import Place, key_of, remedy, storage_of
from pipeline.storage.ranges import NOTHING, intact

RECORD_ARRAYS = ("record", "thumbnail")  # arrays of every sample that do not belong to the codec
Chunks = dict[str, memoryview]
Check = Callable[[dict[str, np.ndarray], LevelShapes], None]
REMEDY = "`python -m pipeline repair --config C` recomputes only this shard"


class ShardReader:
    """One shard, opened through its sidecar. Thread-safe: reads are positional.

    Raise CacheError where a file is missing, CorruptCache where bytes differ or the shard was forged. The error names
    shard and sample. Memory use is limited by the shard's own bytes and by the size of its FPN grids.
    """

    def __init__(self, path: Place, sidecar: Sidecar | None = None) -> None:
        self.path = path
        self.sidecar: Sidecar = sidecar or load_sidecar(path.with_suffix(".json"))
        self._remedy = remedy(path, REMEDY)
        self._ranges = storage_of(path).open_ranges(key_of(path), self.sidecar)
        try:
            if self._ranges.size != self.sidecar.size:
                raise CorruptCache(
                    f"{path}: expected {self.sidecar.size} bytes, found {self._ranges.size}; {self._remedy}"
                )
            self._head_bytes = self._bytes(self.sidecar.head, "head")
            head = self._parse(self._head_bytes)
            if self._ranges.local:  # a remote tail would cost one more request; `verify` reads it
                self._bytes(self.sidecar.tail, "tail")
        except BaseException:
            self.close()
            raise
        self.attributes: dict[str, Any] = head.attributes
        self.specs: list[ArraySpec] = head.specs
        self._shapes = head.shapes

    def __len__(self) -> int:
        return len(self.sidecar.samples)

    def head(self) -> dict[str, bytes]:
        """Return the files in the shard's head, by zarr key."""
        return {name: bytes(data) for name, data in tar.parse(self._head_bytes)}

    def _parse(self, data: bytes) -> Head:
        try:
            return parse_head(data, len(self))
        except CorruptCache as error:
            raise CorruptCache(f"{self.path}: {error}") from error

    def _bytes(self, extent: Extent, what: str, fetched: Fetched = NOTHING) -> bytes:
        data = fetched.get(extent.offset, b"")
        if not intact(data, extent):
            data = self._ranges.read(extent)
        if not intact(data, extent):
            raise CorruptCache(
                f"{self.path}: {what} (bytes {extent.offset}-{extent.offset + extent.size}): size or checksum differs "
                f"from the sidecar; {self._remedy}"
            )
        return data

    def fetches(self, indices: Iterable[int]) -> list[Callable[[], Fetched]]:
        """Return calls that prefetch these samples for `chunks`, in any thread. Empty if reads are local."""
        return self._ranges.fetches([self.extent(index) for index in indices])

    def extent(self, index: int) -> Extent:
        """Return the extent of a sample. Raise CorruptCache where the shard has fewer samples."""
        self._name(index)
        return self.sidecar.samples[index]

    def _name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise CorruptCache(
                f"{self.path}: sample {index} is in the shard plan, but the shard has {len(self)}; {self._remedy}"
            )
        extent = self.sidecar.samples[index]
        return f"sample {index} (image {extent.image_id}, view {extent.view})"

    def levels(self, index: int) -> LevelShapes:
        """Return the FPN grids of a sample, from the shard's head."""
        self._name(index)
        return tuple(map(tuple, self._shapes[index].tolist()))

    def chunks(self, index: int, fetched: Fetched = NOTHING) -> Chunks:
        """Return the verified, compressed chunk of every array of one sample."""
        what = self._name(index)
        data = self._bytes(self.sidecar.samples[index], what, fetched)
        try:
            members = list(tar.parse(data))
        except CorruptCache as error:
            raise CorruptCache(f"{self.path}: {what}: {error}") from error
        if [name for name, _ in members] != [spec.chunk_name(index) for spec in self.specs]:
            raise CorruptCache(f"{self.path}: {what}: its tar members differ from the shard's head; {self._remedy}")
        return {spec.name: data for spec, (_, data) in zip(self.specs, members)}

    def record(self, index: int, chunks: Chunks) -> tuple[ViewRecord, LevelShapes]:
        """Decode a sample's view record and FPN grids. Their arrays are not compressed."""
        stored = self.decode(index, {name: chunks[name] for name in RECORD_ARRAYS})
        record, levels = ViewRecord.from_row(stored["record"], stored["thumbnail"])
        extent = self.sidecar.samples[index]
        sides = (*record.shape, *record.ori_shape, *record.pad_shape)
        if (
            (record.image_id, record.view) != (extent.image_id, extent.view)
            or levels != self.levels(index)
            or any(h > record.pad_shape[0] or w > record.pad_shape[1] for h, w in levels)
            or not (min(sides) > 0 and 0 <= record.flip < len(FLIPS))
        ):
            raise CorruptCache(
                f"{self.path}: {self._name(index)}: its record belongs to another sample; {self._remedy}"
            )
        return record, levels

    def decode(self, index: int, chunks: Chunks, check: Check | None = None) -> dict[str, np.ndarray]:
        """Decode these arrays of a sample, padded to the shard's common shape. `check`: the codec's check_sample."""
        try:
            found = {
                spec.name: decode_chunk(spec, bytes(chunks[spec.name])) for spec in self.specs if spec.name in chunks
            }
            if check is not None:
                check(found, self.levels(index))
        except CorruptCache as error:
            raise CorruptCache(f"{self.path}: {self._name(index)}: {error}") from error
        return found

    def read(self, index: int, check: Check | None = None) -> dict[str, np.ndarray]:
        """Read every array of one sample, padded to the shard's common shape."""
        chunks = self.chunks(index)
        self.record(index, chunks)
        return self.decode(index, chunks, check)

    def view(self, index: int, check: Check | None = None) -> tuple[ViewRecord, LevelShapes, dict[str, np.ndarray]]:
        """Read a sample: its view record, its FPN grids, and the codec's arrays."""
        chunks = self.chunks(index)
        return *self.record(index, chunks), self.coded(index, chunks, check)

    def coded(self, index: int, chunks: Chunks, check: Check | None = None) -> dict[str, np.ndarray]:
        """Decode only the codec's arrays."""
        return self.decode(index, {name: c for name, c in chunks.items() if name not in RECORD_ARRAYS}, check)

    def close(self) -> None:
        self._ranges.close()
