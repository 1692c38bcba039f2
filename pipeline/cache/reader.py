"""Reading a shard strictly: one read per sample, checked before it is parsed, parsed before it is decompressed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipeline.cache import tarfmt
from pipeline.cache.arrays import ArraySpec, decode_chunk, spec_from_metadata
from pipeline.cache.place import Place
from pipeline.cache.ranges import NOTHING, Fetched, intact, open_ranges
from pipeline.cache.sidecar import Extent, Sidecar, load_sidecar
from pipeline.errors import CorruptCache


class ShardReader:
    """One shard, opened through its sidecar. Thread-safe: reads are positional.

    Raises CacheError where a file is missing, CorruptCache (naming shard and sample) where bytes differ.
    """

    def __init__(self, path: Place, sidecar: Sidecar | None = None) -> None:
        self.path = path
        self.sidecar: Sidecar = sidecar or load_sidecar(path.with_suffix(".json"))
        self._ranges = open_ranges(path, self.sidecar)
        size = self._ranges.size
        if size != self.sidecar.size:
            self.close()
            raise CorruptCache(f"{path}: expected {self.sidecar.size} bytes, found {size}")
        head = self.head()
        try:
            self.attributes: dict[str, Any] = json.loads(head["zarr.json"])["attributes"]
            names = self.attributes["arrays"]
            self.specs: list[ArraySpec] = [
                spec_from_metadata(name, json.loads(head[f"{name}/zarr.json"])) for name in names
            ]
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            raise CorruptCache(f"{path}: its head is not one of this format ({error})") from error

    def __len__(self) -> int:
        return len(self.sidecar.samples)

    def head(self) -> dict[str, bytes]:
        """What stands once in a shard, by zarr key."""
        return {name: bytes(data) for name, data in self._members(self.sidecar.head, "head")}

    def _members(self, extent: Extent, what: str, fetched: Fetched = NOTHING) -> list[tuple[str, memoryview]]:
        return list(tarfmt.parse(self._bytes(extent, what, fetched)))

    def _bytes(self, extent: Extent, what: str, fetched: Fetched = NOTHING) -> bytes:
        data = fetched.get(extent.offset, b"")
        if not intact(data, extent):
            data = self._ranges.read(extent)
        if not intact(data, extent):
            raise CorruptCache(
                f"{self.path}: {what} (bytes {extent.offset}-{extent.offset + extent.size}) is not what was written; "
                "delete this shard and run stage 1 again, it recomputes that shard alone"
            )
        return data

    def fetches(self, indices: Iterable[int]) -> list[Callable[[], Fetched]]:
        """Calls that get these samples from afar, in any thread, for `read`; none where they lie on this machine."""
        return self._ranges.fetches([self.sidecar.samples[index] for index in indices])

    def chunks(self, index: int, fetched: Fetched = NOTHING) -> dict[str, memoryview]:
        """The verified, still compressed chunk of every array of one sample."""
        extent = self.sidecar.samples[index]
        what = f"sample {index} (image {extent.image_id}, view {extent.view})"
        members = self._members(extent, what, fetched)
        if [name for name, _ in members] != [spec.chunk_name(index) for spec in self.specs]:
            raise CorruptCache(f"{self.path}: {what} holds other members than its head declares")
        return {spec.name: data for spec, (_, data) in zip(self.specs, members)}

    def read(self, index: int, fetched: Fetched = NOTHING) -> dict[str, np.ndarray]:
        """Every array of one sample, at the shard's common (padded) shape."""
        chunks = self.chunks(index, fetched)
        try:
            return {spec.name: decode_chunk(spec, bytes(chunks[spec.name])) for spec in self.specs}
        except CorruptCache as error:
            raise CorruptCache(f"{self.path}: sample {index}: {error}") from error

    def check_tail(self) -> None:
        """The end-of-archive marker, which no sample's read covers."""
        self._bytes(self.sidecar.tail, "tail")

    def close(self) -> None:
        self._ranges.close()
