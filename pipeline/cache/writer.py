"""Writing one shard: head, samples as they come, tail; then an atomic rename, then the sidecar."""

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
    """Takes the samples of one shard, in order, in `written_shard`; memory is one sample, whatever the shard's size."""

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
        """Append the tar's end; `sidecar` then describes the whole."""
        tail = self._append(tar.END)
        self.sidecar = Sidecar(name, plan, codec, self._at, self._hash.hexdigest(), self._head,
                               tuple(self._samples), tail, self._bytes, self.measured)  # fmt: skip


@contextmanager
def written_shard(path: Place, specs: Sequence[ArraySpec], head: bytes, plan: str, codec: str) -> Iterator[ShardWriter]:
    """A shard to add samples to, streamed to disk; `plan`, `codec`: digests of what it belongs to.

    Leaving with an error removes the temporary file; leaving well commits the tar and then its sidecar, so a sidecar
    never describes a shard that is not there. A shard of an object store grows in a temporary file here and is put when
    it is whole.
    """
    with atomic_file(path) as file:
        writer = ShardWriter(file, specs, head)
        yield writer
        writer.finish(path.name, plan, codec)
    write_json(path.with_suffix(".json"), writer.sidecar.to_json())
