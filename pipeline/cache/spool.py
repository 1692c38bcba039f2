"""Keep the samples of a shard until its head is known: in memory, or in an unnamed temporary file if they are large."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.storage.files import local_path
from pipeline.storage.local import naming
from pipeline.storage.place import Place

IN_MEMORY = 64 << 20  # bytes; a shard of 256 views with the frs codec takes about half


class SampleSpool:
    """The tar members of samples, in order. The file is in the folder of the shard, or in TMPDIR for a remote shard.

    It has no name, so it disappears with the process.
    """

    def __init__(self, shard: Place) -> None:
        folder = local_path(shard.parent)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder or Path(tempfile.gettempdir())
        self._path = folder / shard.name if folder is not None else self._folder
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=str(self._folder))  # noqa: SIM115 (closed by us)
        self._samples: list[tuple[int, int, int]] = []  # image id, view, bytes

    def __enter__(self) -> SampleSpool:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def add(self, image_id: int, view: int, member: bytes) -> None:
        """Append one sample."""
        with naming(self._path):
            self._file.write(member)
        self._samples.append((image_id, view, len(member)))

    def samples(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (image id, view, tar member) of every sample."""
        with naming(self._path):
            self._file.seek(0)
        for image_id, view, size in self._samples:
            with naming(self._path):
                member = self._file.read(size)
            if len(member) != size:
                raise OSError(f"{self._path}: temporary file: expected {size} bytes, got {len(member)}")
            yield image_id, view, member
