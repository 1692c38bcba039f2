"""Write one shard: head, samples, tail, then an atomic rename, then the sidecar."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pipeline.cache import tar
from pipeline.cache.canonical import write_json
from pipeline.cache.sidecar import EXTENTS, Sidecar
from pipeline.storage.extents import Extent
from pipeline.storage.files import atomic_file
from pipeline.storage.place import Place


class ShardWriter:
    """Write the extents of one shard, in order. Made by `written_shard`. Only one sample is in memory at a time."""

    def __init__(self, file: BinaryIO, version: int, head: bytes) -> None:
        self._file, self._extent = file, EXTENTS[version]
        self._hash, self._at = hashlib.sha256(), 0
        self._samples: list[Extent] = []
        self._head = self._append(head)
        self.bytes_by_array: dict[str, int] = {}
        self.measured: dict[str, float] = {}

    def _append(self, data: bytes, image_id: int = -1, view: int = -1) -> Extent:
        extent = self._extent.of(self._at, data, image_id, view)
        self._file.write(data)
        self._hash.update(data)
        self._at += len(data)
        return extent

    def add(self, image_id: int, view: int, members: bytes) -> None:
        """Append one sample; `members`: its tar members."""
        self._samples.append(self._append(members, image_id, view))

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
            bytes_by_array=self.bytes_by_array,
            measured=self.measured,
        )


@contextmanager
def written_shard(path: Place, version: int, head: bytes, plan: str, codec: str) -> Iterator[ShardWriter]:
    """Open a shard for writing. `plan`, `codec`: digests of the plan.json and codec.json that it belongs to.

    At the end of the block, the tar is committed first, then its sidecar, so a sidecar never describes a missing shard.
    After an error, the temporary file is removed. For an object store, the shard is written to a local temporary file
    and uploaded when it is complete.
    """
    with atomic_file(path) as file:
        writer = ShardWriter(file, version, head)
        yield writer
        writer.finish(path.name, plan, codec)
    write_json(path.with_suffix(".json"), writer.sidecar.to_json())
