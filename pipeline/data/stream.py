"""The webdataset pipeline of stage 2: schedule, read, replay, verify, collate."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import cv2
import torch
import webdataset as wds
from torch.utils.data import DataLoader, get_worker_info

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import digest
from pipeline.cache.prefetch import read_batches
from pipeline.cache.shard_format import Chunks
from pipeline.cache.stored_images import StoredImages
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import Sample, stack
from pipeline.data.images import Images
from pipeline.data.replay import check_replay
from pipeline.data.sample_table import SampleTable
from pipeline.data.schedule import Batch, epoch_batches, take_share
from pipeline.data.views import Views
from pipeline.errors import ConfigError
from pipeline.records import EncodedBatch, LevelShapes, SampleRef, ViewRecord
from pipeline.storage.place import storage_of

Read = Sequence[tuple[SampleRef, Chunks | None, bytes | None]]


@dataclass
class StreamSource:
    """The source of a stream's samples.

    passes[n]: the shards of pass n, kept as a table that workers share. cache, codec: None if the teacher is live.
    check, tolerance: see `check_replay`. versions[n]: the library versions that made pass n. files: the image files of
    the cache; None if they are read from the image folder.
    """

    passes: Mapping[int, Iterable[list[SampleRef]]]
    images: Images
    views: Views
    cache: Cache | None
    codec: Codec | None
    check: str
    tolerance: float
    versions: dict[int, dict[str, str]]
    files: StoredImages | None = None

    def __post_init__(self) -> None:
        self.passes = {
            number: shards if isinstance(shards, SampleTable) else SampleTable(shards, shared=True)
            for number, shards in self.passes.items()
        }


class Stream(wds.DataPipeline):
    """Batches {'inputs', 'data_samples', 'teacher'} of one epoch, for DataLoader(batch_size=None).

    batch_size: samples of one rank. `teacher` is the EncodedBatch of the cache, or None if the teacher is live. Workers
    take turns, so the order of batches does not depend on their number. Raises CorruptCache, ReplayMismatch, DataError.
    """

    def __init__(self, source: StreamSource, batch_size: int, seed: int) -> None:
        super().__init__(self._schedule, self._read, self._replay)
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.metainfo = source.images.metainfo
        self._rank, self._world = 0, 1
        # In shared memory, so persistent workers see the new epoch.
        self._epoch, self._start = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._current: tuple[tuple[int, int], SampleTable] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process, which plans its epochs itself."""
        return {**self.__dict__, "_current": None}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch to stream next, also in running workers."""
        self._epoch.fill_(epoch)

    def set_start(self, batches: int) -> None:
        """Skip this many batches of the epoch, which were done before a resume."""
        self._start.fill_(batches)

    def set_rank(self, rank: int, world: int) -> None:
        """Set the rank whose share of each batch is streamed."""
        self._rank, self._world = rank, world

    def update_skip_type_keys(self, keys: Sequence[str]) -> None:
        """Do nothing. YOLOXModeSwitchHook turns transforms off here, and no cached view has them (stage2/hooks.py)."""

    @property
    def global_batch(self) -> int:
        """Samples of a step over all ranks."""
        return self.batch_size * self._world

    def batches(self) -> list[Batch]:
        """Return the current epoch's batches, over all ranks: one pass, or `images.repeats` passes (RepeatDataset)."""
        return list(self._planned())

    def _planned(self) -> SampleTable:
        """Return `batches`, planned once for each epoch."""
        key = (int(self._epoch), self.global_batch)
        if self._current is None or self._current[0] != key:
            numbers, times = sorted(self.source.passes), self.source.images.repeats
            rounds = range(key[0] * times, (key[0] + 1) * times)
            shards = (list(self.source.passes[numbers[n % len(numbers)]]) for n in rounds)
            made = (epoch_batches(part, self.seed, n, key[1]) for n, part in zip(rounds, shards))
            self._current = (key, SampleTable(batch for part in made for batch in part))
        return self._current[1]

    def epoch_digest(self) -> str:
        """Return the digest of the current epoch's batches: images and views, step by step."""
        return digest([[[ref.image_id, ref.view] for ref in batch] for batch in self._planned()])

    def __len__(self) -> int:
        return len(self._planned())

    def _schedule(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        planned = self._planned()
        for number in range(int(self._start) + first, len(planned), step):
            yield take_share(planned[number], self._rank, self._world)

    def _read(self, batches: Iterable[Batch]) -> Iterable[Read]:
        cache = self.source.cache
        if cache is None:
            return ([(ref, None, None) for ref in batch] for batch in batches)
        return read_batches(cache, batches, self.source.files)

    def _replay(self, read: Iterable[Read]) -> Iterator[dict[str, Any]]:
        for samples in read:
            inputs, data_samples, arrays, levels = [], [], [], []
            for ref, chunks, content in samples:
                info = self.source.images.info(ref.image_id)
                thumbnail = self.source.check == "close"
                view, data_sample, record = self.source.views.replay(info, ref.view, thumbnail, content)
                inputs.append(view)
                data_samples.append(data_sample)
                if chunks is not None:
                    stored, shapes = self._decompress(ref, chunks, record)
                    arrays.append(stored)
                    levels.append(shapes)
            teacher = self._stack(arrays, levels) if arrays else None
            yield {"inputs": inputs, "data_samples": data_samples, "teacher": teacher}

    def _stack(self, arrays: Sequence[Sample], levels: Sequence[LevelShapes]) -> EncodedBatch:
        """Stack the samples of a step. Raise ConfigError where they are too large to be decoded together."""
        assert self.source.codec is not None
        try:
            self.source.codec.require_affordable(levels)
        except ValueError as error:
            raise ConfigError(f"train_dataloader.batch_size: {error}; reduce it") from error
        return stack(arrays, levels)

    def _decompress(self, ref: SampleRef, chunks: Chunks, replayed: ViewRecord) -> tuple[Sample, LevelShapes]:
        """Return the codec's arrays of a sample. Its record is compared with the replayed view before decompression."""
        source = self.source
        assert source.cache is not None and source.codec is not None
        reader = source.cache.shard(ref.cache_pass, ref.shard)
        cached, shapes = reader.record(ref.index, chunks)
        check_replay(cached, replayed, source.check, source.tolerance, source.versions[ref.cache_pass])
        return reader.coded(ref.index, chunks, source.codec), shapes


@dataclass(frozen=True)
class LoaderOptions:
    """The keys of `train_dataloader` that torch's DataLoader gets.

    `prefetch_factor`: batches that each worker loads in advance (None: torch's 2). `timeout`: seconds to wait for a
    batch, 0 without a limit.
    """

    num_workers: int = field(default=0, metadata={"at_least": 0})
    persistent_workers: bool = False
    pin_memory: bool = False
    prefetch_factor: int | None = field(default=None, metadata={"at_least": 1})
    timeout: float = field(default=0.0, metadata={"at_least": 0})


def stream_loader(stream: Stream, options: LoaderOptions) -> DataLoader:
    """Return a DataLoader for mmengine's Runner."""
    given = asdict(options)
    given["pin_memory"] = options.pin_memory and torch.cuda.is_available()  # without CUDA, torch would warn
    cache = stream.source.cache
    if options.num_workers and cache is not None and not storage_of(cache.root).fork_safe:
        # This process has used obstore, whose threads do not survive a fork.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        threads = partial(_use_threads, cv2.getNumThreads())
        # Starting a process of a fork server takes seconds, and the stream is sent to each.
        given |= {"multiprocessing_context": context, "worker_init_fn": threads, "persistent_workers": True}
    return DataLoader(stream, batch_size=None, **given)


def _use_threads(count: int, worker: int) -> None:
    """Set OpenCV's threads in a worker. mmengine sets them only in the main process and its forks."""
    cv2.setNumThreads(count)
