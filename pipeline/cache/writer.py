"""Writing one shard: head, samples as they come, tail; then an atomic rename, then the sidecar."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from google_crc32c import value as crc32c

from pipeline.cache import tarfmt
from pipeline.cache.arrays import ArraySpec, array_metadata, encode_chunk
from pipeline.cache.files import atomic_file, canonical, write_json
from pipeline.cache.place import Place
from pipeline.cache.sidecar import Extent, Sidecar

Index = dict[str, tuple[np.ndarray, tuple[str, ...]]]


def shard_head(specs: Sequence[ArraySpec], attributes: dict[str, Any], samples: int, index: Index) -> bytes:
    """Tar members that stand once per shard: zarr metadata, and the small `index/` arrays in one chunk each."""
    files = {"zarr.json": canonical({"zarr_format": 3, "node_type": "group", "attributes": attributes})}
    for spec in specs:
        files[f"{spec.name}/zarr.json"] = canonical(spec.metadata(samples))
    files["index/zarr.json"] = canonical({"zarr_format": 3, "node_type": "group", "attributes": {}})
    for name, (values, dims) in index.items():
        meta = array_metadata(values.shape, values.shape, str(values.dtype), dims, None)
        files[f"index/{name}/zarr.json"] = canonical(meta)
        whole = ArraySpec(name, values.shape, str(values.dtype), dims)
        files["/".join(["index", name, "c"] + ["0"] * values.ndim)] = encode_chunk(whole, values)
    return b"".join(tarfmt.member(name, data) for name, data in files.items())


class ShardWriter:
    """Context manager that streams one shard to disk; memory is one sample, whatever the shard's size.

    A shard of an object store grows in a temporary file here and is put when it is whole.

    Leaving with an error removes the temporary file; leaving well commits the tar and then its sidecar, so a
    sidecar never describes a shard that is not there.
    """

    def __init__(self, path: Place, specs: Sequence[ArraySpec], head: bytes, plan: str, codec: str) -> None:
        self._path, self._specs, self._plan, self._codec = path, specs, plan, codec
        self._file_context = atomic_file(path)
        self._hash, self._at = hashlib.sha256(), 0
        self._samples: list[Extent] = []
        self._bytes = {spec.name: 0 for spec in specs}
        self._head_bytes = head
        self.measured: dict[str, float] = {}

    def __enter__(self) -> ShardWriter:
        self._file = self._file_context.__enter__()
        self._head = self._append(self._head_bytes)
        return self

    def _append(self, data: bytes, image_id: int = -1, view: int = -1) -> Extent:
        extent = Extent(self._at, len(data), crc32c(data), image_id, view)
        self._file.write(data)
        self._hash.update(data)
        self._at += len(data)
        return extent

    def add(self, image_id: int, view: int, chunks: dict[str, bytes]) -> None:
        """Append one sample; `chunks` maps every array's name to its encoded chunk."""
        index = len(self._samples)
        members = [tarfmt.member(spec.chunk_name(index), chunks[spec.name]) for spec in self._specs]
        for spec in self._specs:
            self._bytes[spec.name] += len(chunks[spec.name])
        self._samples.append(self._append(b"".join(members), image_id, view))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._file_context.__exit__(kind, error, trace)
            return
        tail = self._append(tarfmt.END)
        self._file_context.__exit__(None, None, None)
        self.sidecar = Sidecar(
            self._path.name, self._plan, self._codec, self._at, self._hash.hexdigest(), self._head,
            tuple(self._samples), tail, self._bytes, self.measured,
        )  # fmt: skip
        write_json(self._path.with_suffix(".json"), self.sidecar.to_json())
