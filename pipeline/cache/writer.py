"""Write one shard: head, samples, tail, then an atomic rename, then the sidecar."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from google_crc32c import value as crc32c

from pipeline.cache import tar
from pipeline.cache.arrays import ArraySpec
from pipeline.cache.canonical import write_json
from pipeline.cache.sidecar import Sidecar
from pipeline.storage.base import Extent
from pipeline.storage.files import atomic_file
from pipeline.storage.place import Place


class ShardWriter:
    """Write the samples of one shard, in order. Made by `written_shard`. Only one sample is in memory at a time."""

    def __init__(self, file: BinaryIO, specs: Sequence[ArraySpec], head: bytes) -> None:
        self._file, self._specs = file, specs
        self._hash, self._at = hashlib.sha256(), 0
        self._samples: list[Extent] = []
        self._bytes = {spec.name: 0 for spec in specs}
        self._head = self._append(head)
        self.measured: dict[str, float] = {}

    def _append(self, data: bytes, image_id: int = -1, view: int = -1) -> Extent:
        extent = Extent(self._at, len(data), crc32c(data), image_id, view)
        self._file.write(data)
        self._hash.update(data)
        self._at += len(data)
        return extent

    def add(self, image_id: int, view: int, chunks: dict[str, bytes]) -> None:
        """Append one sample; `chunks` maps every array's name to its encoded chunk."""
        index = len(self._samples)
        members = [tar.member(spec.chunk_name(index), chunks[spec.name]) for spec in self._specs]
        for spec in self._specs:
            self._bytes[spec.name] += len(chunks[spec.name])
        self._samples.append(self._append(b"".join(members), image_id, view))

    def finish(self, name: str, plan: str, codec: str) -> None:
        """Append the end of the tar, and set `sidecar`."""
        tail = self._append(tar.END)
        self.sidecar = Sidecar(
            shard=name,
            plan=plan,
            codec=codec,
            size=self._at,
            sha256=self._hash.hexdigest(),
            head=self._head,
            samples=tuple(self._samples),
            tail=tail,
            bytes_by_array=self._bytes,
            measured=self.measured,
        )


@contextmanager
def written_shard(path: Place, specs: Sequence[ArraySpec], head: bytes, plan: str, codec: str) -> Iterator[ShardWriter]:
    """Open a shard for writing. `plan`, `codec`: digests of the plan.json and codec.json that it belongs to.

    At the end of the block, the tar is committed first, then its sidecar, so a sidecar never describes a missing shard.
    After an error, the temporary file is removed. For an object store, the shard is written to a local temporary file
    and uploaded when it is complete.
    """
    with atomic_file(path) as file:
        writer = ShardWriter(file, specs, head)
        yield writer
        writer.finish(path.name, plan, codec)
    write_json(path.with_suffix(".json"), writer.sidecar.to_json())
