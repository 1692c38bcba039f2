"""The webdataset pipeline of stage 2: schedule, strict reading, replay and check, collate."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import torch
import webdataset as wds
from torch.utils.data import DataLoader, get_worker_info

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import digest
from pipeline.cache.prefetch import read_batches
from pipeline.cache.reader import Chunks
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import Sample, stack
from pipeline.data.images import Images
from pipeline.data.replay import check_replay
from pipeline.data.schedule import Batch, epoch_batches, take_share
from pipeline.data.views import Views
from pipeline.records import LevelShapes, SampleRef, ViewRecord
from pipeline.storage.place import storage_of

Read = Sequence[tuple[SampleRef, Chunks | None]]


@dataclass
class StreamSource:
    """Where samples come from. `passes[n]`: the shards of pass n; no `cache` and `codec` where the teacher is live."""

    passes: dict[int, list[list[SampleRef]]]
    images: Images
    views: Views
    cache: Cache | None
    codec: Codec | None
    check: str
    tolerance: float
    made_with: dict[int, dict[str, str]]


class Stream(wds.DataPipeline):
    """Ready batches {'inputs', 'data_samples', 'teacher'} of one epoch, for DataLoader(batch_size=None).

    batch_size: of one rank.
    `teacher` is the EncodedBatch of the cache, or None where the teacher is live. Workers take turns, so the order
    of batches is the schedule's for any number of them. Raises CorruptCache, ReplayMismatch, DataError.
    """

    def __init__(self, source: StreamSource, batch_size: int, seed: int) -> None:
        super().__init__(self._schedule, self._read, self._replay)
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.metainfo = source.images.metainfo
        self._rank, self._world = 0, 1
        # Shared memory, so that workers which outlive an epoch learn of the next one.
        self._epoch, self._start = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._current: tuple[tuple[int, int], list[Batch]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is streamed next; also in workers that run already."""
        self._epoch.fill_(epoch)

    def set_start(self, batches: int) -> None:
        """Leave out this many batches of the epoch, which an earlier run has made."""
        self._start.fill_(batches)

    def set_rank(self, rank: int, world: int) -> None:
        """Take this rank's share of each batch."""
        self._rank, self._world = rank, world

    @property
    def global_batch(self) -> int:
        """Samples of a step over all ranks."""
        return self.batch_size * self._world

    def batches(self) -> list[Batch]:
        """The current epoch's batches of all ranks together."""
        key = (int(self._epoch), self.global_batch)
        if self._current is None or self._current[0] != key:
            numbers = sorted(self.source.passes)
            shards = self.source.passes[numbers[key[0] % len(numbers)]]
            self._current = (key, epoch_batches(shards, self.seed, *key))
        return self._current[1]

    def epoch_digest(self) -> str:
        """Return the digest of what the steps of the current epoch learn from: images and views, step by step."""
        return digest([[[ref.image_id, ref.view] for ref in batch] for batch in self.batches()])

    def __len__(self) -> int:
        return len(self.batches())

    def _schedule(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch in self.batches()[int(self._start) + first :: step]:
            yield take_share(batch, self._rank, self._world)

    def _read(self, batches: Iterable[Batch]) -> Iterable[Read]:
        cache = self.source.cache
        return read_batches(cache, batches) if cache else ([(ref, None) for ref in batch] for batch in batches)

    def _replay(self, read: Iterable[Read]) -> Iterator[dict[str, Any]]:
        for samples in read:
            inputs, data_samples, arrays, levels = [], [], [], []
            for ref, chunks in samples:
                info = self.source.images.info(ref.image_id)
                view, data_sample, record = self.source.views.replay(info, ref.view, self.source.check == "close")
                inputs.append(view)
                data_samples.append(data_sample)
                if chunks is not None:
                    stored, shapes = self._stored(ref, chunks, record)
                    arrays.append(stored)
                    levels.append(shapes)
            teacher = stack(arrays, levels) if arrays else None
            yield {"inputs": inputs, "data_samples": data_samples, "teacher": teacher}

    def _stored(self, ref: SampleRef, chunks: Chunks, replayed: ViewRecord) -> tuple[Sample, LevelShapes]:
        """The codec's arrays of a sample; decompressed only once its grids are known to be those of the own view."""
        source = self.source
        assert source.cache is not None and source.codec is not None
        reader = source.cache.shard(ref.cache_pass, ref.shard)
        cached, shapes = reader.record(ref.index, chunks)
        check_replay(cached, replayed, source.check, source.tolerance, source.made_with[ref.cache_pass])
        return reader.coded(ref.index, chunks, source.codec.check_sample), shapes


def stream_loader(stream: Stream, workers: int) -> DataLoader:
    """A DataLoader that mmengine's Runner takes as it is."""
    cache = stream.source.cache
    if not workers or cache is None or storage_of(cache.root).fork_safe:
        return DataLoader(stream, batch_size=None, num_workers=workers)
    # This process has read the cache's plan; a plain fork of it would inherit obstore without obstore's threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    threads = partial(_use_threads, cv2.getNumThreads())
    return DataLoader(
        stream, batch_size=None, num_workers=workers, multiprocessing_context=context, worker_init_fn=threads
    )


def _use_threads(count: int, worker: int) -> None:
    """mmengine sets OpenCV's threads in the main process; a worker that is no fork of it has to be told."""
    cv2.setNumThreads(count)
