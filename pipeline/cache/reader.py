"""Reading a shard strictly: one read per sample, checked before it is parsed, parsed before it is decompressed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c

from pipeline.cache import tarfmt
from pipeline.cache.arrays import ArraySpec, decode_chunk, spec_from_metadata
from pipeline.cache.sidecar import Extent, Sidecar, load_sidecar
from pipeline.errors import CacheError, CorruptCache


class ShardReader:
    """One shard, opened through its sidecar. Thread-safe: reads are positional.

    Raises CacheError where a file is missing, CorruptCache (naming shard and sample) where bytes differ.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sidecar: Sidecar = load_sidecar(path.with_suffix(".json"))
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CacheError(f"{path}: expected a shard of the cache, found {error.strerror or error}") from error
        size = os.fstat(self._handle).st_size
        if size != self.sidecar.size:
            self.close()
            raise CorruptCache(f"{path}: expected {self.sidecar.size} bytes, found {size}")
        head = {name: bytes(data) for name, data in self._members(self.sidecar.head, "head")}
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

    def _members(self, extent: Extent, what: str) -> list[tuple[str, memoryview]]:
        return list(tarfmt.parse(self._bytes(extent, what)))

    def _bytes(self, extent: Extent, what: str) -> bytes:
        data = os.pread(self._handle, extent.size, extent.offset)
        if len(data) != extent.size or crc32c(data) != extent.crc32c:
            raise CorruptCache(
                f"{self.path}: {what} (bytes {extent.offset}-{extent.offset + extent.size}) is not what was written; "
                "delete this shard and run stage 1 again, it recomputes that shard alone"
            )
        return data

    def chunks(self, index: int) -> dict[str, memoryview]:
        """The verified, still compressed chunk of every array of one sample."""
        extent = self.sidecar.samples[index]
        what = f"sample {index} (image {extent.image_id}, view {extent.view})"
        members = self._members(extent, what)
        if [name for name, _ in members] != [spec.chunk_name(index) for spec in self.specs]:
            raise CorruptCache(f"{self.path}: {what} holds other members than its head declares")
        return {spec.name: data for spec, (_, data) in zip(self.specs, members)}

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Every array of one sample, at the shard's common (padded) shape."""
        chunks = self.chunks(index)
        try:
            return {spec.name: decode_chunk(spec, bytes(chunks[spec.name])) for spec in self.specs}
        except CorruptCache as error:
            raise CorruptCache(f"{self.path}: sample {index}: {error}") from error

    def check_tail(self) -> None:
        """The end-of-archive marker, which no sample's read covers."""
        self._bytes(self.sidecar.tail, "tail")

    def close(self) -> None:
        os.close(self._handle)
