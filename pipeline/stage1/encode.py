"""Encode the teacher's output for a batch of views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.budget import BUDGET
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import Sample
from pipeline.errors import CodecError
from pipeline.precision import precision
from pipeline.records import TeacherOutput, ViewRecord


@dataclass(frozen=True)
class EncodedViews:
    """An encoded batch. `errors`: mean error over its samples, by name."""

    records: Sequence[ViewRecord]
    samples: list[Sample]
    errors: dict[str, float]


Add = Callable[[EncodedViews], None]


def encode_views(codec: Codec, output: TeacherOutput, records: Sequence[ViewRecord]) -> EncodedViews:
    """Encode the teacher's output for a batch of views. Raise CodecError, which names the image."""
    with precision(False):
        return _encode(codec, output, records)


def _encode(codec: Codec, output: TeacherOutput, records: Sequence[ViewRecord]) -> EncodedViews:
    try:
        samples, errors = codec.encode(output)
    except CodecError as error:
        failed = records if error.sample is None else [records[error.sample]]
        names = ", ".join(f"{record.image_id} (view {record.view})" for record in failed)
        raise CodecError(f"image {names}: {error}") from error
    for sample, record in zip(samples, records):
        sample["record"], sample["thumbnail"] = record.row(output.levels), record.thumbnail
    return EncodedViews(records, samples, errors)


class BackgroundEncoder:
    """Encodes a batch on a thread while the caller computes the next one. A context manager.

    `threaded`: False where caller and codec need different settings of the process, such as TF32. A batch of more than
    BUDGET.batch_bytes is encoded before the next one is computed, which keeps the memory of one batch.

    The thread computes without OpenMP threads of its own. They would only interrupt those of the teacher, which wait
    for each other in every operation.
    """

    def __init__(self, codec: Codec, threaded: bool) -> None:
        self._codec, self._threaded = codec, threaded
        self._pool = ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=(1,))
        self._pending: tuple[Future[EncodedViews], Add] | None = None

    def __enter__(self) -> BackgroundEncoder:
        self._stack = ExitStack()
        threads = torch.get_num_threads()
        self._pool.submit(torch.get_num_threads).result()  # starts the thread
        torch.set_num_threads(threads)  # the number of threads that start later
        if self._threaded:  # settings are those of the process, so the thread does not change them
            self._stack.enter_context(precision(False))
        return self

    def submit(self, output: TeacherOutput, records: Sequence[ViewRecord], add: Add) -> None:
        """Pass the previous batch to its `add`, then start to encode this one. Raise the error of the previous one."""
        self.finish()
        self._pending = (
            self._pool.submit(_encode if self._threaded else encode_views, self._codec, output, records),
            add,
        )
        if not self._threaded or sum(t.nbytes for t in (*output.features, *output.scores)) > BUDGET.batch_bytes:
            self.finish()

    def finish(self) -> None:
        """Wait for the last batch, and pass it to its `add`."""
        if self._pending is not None:
            future, add = self._pending
            self._pending = None
            add(future.result())

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._stack.close()
