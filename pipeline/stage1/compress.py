"""Compress encoded batches on threads while the teacher runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from pipeline.codecs.packing import Sample
from pipeline.records import ViewRecord
from pipeline.stage1.encode import EncodedViews

Encode = Callable[[Sample], dict[str, bytes]]
Members = Callable[[int, Mapping[str, bytes]], bytes]
Append = Callable[[int, int, bytes], None]


def compression_threads() -> ThreadPoolExecutor:
    """Return the threads of one shard."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


class Compressor:
    """Compresses each batch on threads while the caller computes the next one, and appends the samples in order.

    encode: arrays of a sample -> encoded arrays. members: (index, encoded arrays) -> tar members. append: takes
    (image id, view, tar members). `sizes`: bytes of each encoded array.
    """

    def __init__(self, encode: Encode, members: Members, append: Append, pool: ThreadPoolExecutor) -> None:
        self._encode, self._members, self._append, self._pool = encode, members, append, pool
        self._pending: Iterable[tuple[ViewRecord, dict[str, bytes]]] = ()
        self._errors: dict[str, float] = {}
        self._started = self._appended = 0
        self.sizes: dict[str, int] = {}

    def add(self, views: EncodedViews) -> None:
        """Start to compress a batch, and append the previous one."""
        chunks = self._pool.map(self._encode, views.samples)
        self._append_pending()
        self._pending = zip(views.records, chunks)
        self._started += len(views.samples)
        for name, value in views.errors.items():
            self._errors[name] = self._errors.get(name, 0.0) + value * len(views.samples)

    def finish(self) -> None:
        """Append the last batch."""
        self._append_pending()

    def _append_pending(self) -> None:
        for record, chunks in self._pending:
            self._append(record.image_id, record.view, self._members(self._appended, chunks))
            self._appended += 1
            for name, chunk in chunks.items():
                self.sizes[name] = self.sizes.get(name, 0) + len(chunk)
        self._pending = ()

    @property
    def measured(self) -> dict[str, float]:
        """Mean errors of the samples, by name."""
        return {name: total / self._started for name, total in self._errors.items()}
