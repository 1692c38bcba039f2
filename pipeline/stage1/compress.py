"""Compress encoded batches on threads while the teacher runs."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pipeline.cache.arrays import ArraySpec, encode_sample
from pipeline.cache.sidecar import Sidecar
from pipeline.cache.writer import ShardWriter
from pipeline.records import ViewRecord
from pipeline.stage1.encode import EncodedViews


class CompressingWriter:
    """Compresses each batch on threads while the caller computes the next one. Appends them to a tar in order."""

    def __init__(self, tar: ShardWriter, specs: list[ArraySpec], pool: ThreadPoolExecutor) -> None:
        self._tar, self._specs, self._pool = tar, specs, pool
        self._pending: Iterable[tuple[ViewRecord, dict[str, bytes]]] = ()
        self._errors: dict[str, float] = {}
        self._count = 0

    def add(self, views: EncodedViews) -> None:
        """Start to compress a batch, and append the previous one."""
        chunks = self._pool.map(partial(encode_sample, self._specs), views.samples)
        self._append_pending()
        self._pending = zip(views.records, chunks)
        self._count += len(views.samples)
        for name, value in views.errors.items():
            self._errors[name] = self._errors.get(name, 0.0) + value * len(views.samples)

    def finish(self) -> None:
        """Append the last batch and set the mean errors of the shard."""
        self._append_pending()
        self._tar.measured = {name: total / self._count for name, total in self._errors.items()}

    def _append_pending(self) -> None:
        for record, chunks in self._pending:
            self._tar.add(record.image_id, record.view, chunks)
        self._pending = ()

    @property
    def sidecar(self) -> Sidecar:
        """Return the sidecar. It exists once the tar is committed."""
        return self._tar.sidecar
