"""Prefetch the compressed samples of the next batches while earlier batches are in use.

The schedule shuffles within a window of shards, so few samples of a step are adjacent in a file. Long ranges therefore
hide little of the latency. Many concurrent requests, for several batches, hide more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.cache.cache import Cache
from pipeline.cache.shard_format import Chunks
from pipeline.cache.stored_images import StoredImages
from pipeline.records import SampleRef
from pipeline.storage.extents import Fetched
from pipeline.storage.place import storage_of
from pipeline.storage.ranges import NOTHING

BATCHES, BYTES = 8, 16 << 20  # limits of one prefetch: number of batches, and bytes

Batch = list[SampleRef]
Read = list[tuple[SampleRef, Chunks, bytes | None]]  # with the file of the image, if the cache stores it
Shard = tuple[int, int]  # pass, number


def read_batches(cache: Cache, batches: Iterable[Batch], images: StoredImages | None = None) -> Iterator[Read]:
    """Yield the samples of every batch, in order. Raise CacheError or CorruptCache, maybe some batches early."""
    workers = storage_of(cache.root).max_requests
    if workers == 1:
        for batch in batches:
            yield [
                (
                    ref,
                    cache.shard(ref.cache_pass, ref.shard).chunks(ref.index),
                    None if images is None else images.read(ref.image_id),
                )
                for ref in batch
            ]
        return
    remaining = iter(batches)
    with ThreadPoolExecutor(workers) as pool:
        try:
            pending = _Prefetched(cache, images, remaining, pool)
            while pending.batches:
                ready, pending = pending, _Prefetched(cache, images, remaining, pool)  # fetched while `ready` is in use
                yield from map(ready.read, ready.batches)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Prefetched:
    """A few batches whose samples are being fetched. `batches` is empty at the end of the input."""

    def __init__(
        self, cache: Cache, images: StoredImages | None, remaining: Iterator[Batch], pool: ThreadPoolExecutor
    ) -> None:
        self._cache, self._images, self.batches = cache, images, list[Batch]()
        indices: dict[Shard, list[int]] = {}
        stored: dict[int, list[int]] = {}
        size = 0
        while len(self.batches) < BATCHES and size < BYTES and (batch := next(remaining, None)):
            self.batches.append(batch)
            cache.open_shards([(ref.cache_pass, ref.shard) for ref in batch], pool.map)
            for ref in batch:
                key = (ref.cache_pass, ref.shard)
                indices.setdefault(key, []).append(ref.index)
                size += cache.shard(*key).extent(ref.index).size
            if images is not None:
                images.open_shards([ref.image_id for ref in batch], pool.map)
                for ref in batch:
                    stored.setdefault(images.find(ref.image_id)[0], []).append(ref.image_id)
                    size += images.extent(ref.image_id).size
        self._calls: dict[Shard, list[Future[Fetched]]] = {
            key: [pool.submit(call) for call in cache.shard(*key).fetches(found)] for key, found in indices.items()
        }
        self._files: dict[int, list[Future[Fetched]]] = {
            shard: [pool.submit(call) for call in images.fetches(shard, found)]
            for shard, found in stored.items()
            if images is not None
        }

    def read(self, batch: Batch) -> Read:
        return [(ref, self._chunks(ref), self._file(ref.image_id)) for ref in batch]

    def _chunks(self, ref: SampleRef) -> Chunks:
        reader = self._cache.shard(ref.cache_pass, ref.shard)
        fetched = _holding(self._calls[ref.cache_pass, ref.shard], reader.extent(ref.index).offset)
        return reader.chunks(ref.index, fetched)

    def _file(self, image: int) -> bytes | None:
        if self._images is None:
            return None
        fetched = _holding(self._files[self._images.find(image)[0]], self._images.extent(image).offset)
        return self._images.read(image, fetched)


def _holding(calls: list[Future[Fetched]], offset: int) -> Fetched:
    """Return the result that has the extent at `offset`."""
    return next((got for call in calls if offset in (got := call.result())), NOTHING)
