"""Prefetch the compressed samples of the next batches while earlier batches are in use.

The schedule shuffles within a window of shards, so few samples of a step are adjacent in a file. Long ranges therefore
hide little of the latency. Many concurrent requests, for several batches, hide more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.cache.cache import Cache
from pipeline.cache.shard_format import Chunks
from pipeline.records import SampleRef
from pipeline.storage.extents import Fetched
from pipeline.storage.place import storage_of

BATCHES, BYTES = 8, 16 << 20  # limits of one prefetch: number of batches, and bytes

Batch = list[SampleRef]
Read = list[tuple[SampleRef, Chunks]]
Shard = tuple[int, int]  # pass, number


def read_batches(cache: Cache, batches: Iterable[Batch]) -> Iterator[Read]:
    """Yield the samples of every batch, in order. Raise CacheError or CorruptCache, maybe some batches early."""
    workers = storage_of(cache.root).max_requests
    if workers == 1:
        for batch in batches:
            yield [(ref, cache.shard(ref.cache_pass, ref.shard).chunks(ref.index)) for ref in batch]
        return
    remaining = iter(batches)
    with ThreadPoolExecutor(workers) as pool:
        try:
            pending = _Prefetched(cache, remaining, pool)
            while pending.batches:
                ready, pending = pending, _Prefetched(cache, remaining, pool)  # fetched while `ready` is in use
                yield from map(ready.read, ready.batches)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Prefetched:
    """A few batches whose samples are being fetched. `batches` is empty at the end of the input."""

    def __init__(self, cache: Cache, remaining: Iterator[Batch], pool: ThreadPoolExecutor) -> None:
        self._cache, self.batches = cache, list[Batch]()
        indices: dict[Shard, list[int]] = {}
        size = 0
        while len(self.batches) < BATCHES and size < BYTES and (batch := next(remaining, None)):
            self.batches.append(batch)
            cache.open_shards([(ref.cache_pass, ref.shard) for ref in batch], pool.map)
            for ref in batch:
                key = (ref.cache_pass, ref.shard)
                indices.setdefault(key, []).append(ref.index)
                size += cache.shard(*key).extent(ref.index).size
        self._calls: dict[Shard, list[Future[Fetched]]] = {
            key: [pool.submit(call) for call in cache.shard(*key).fetches(found)] for key, found in indices.items()
        }

    def read(self, batch: Batch) -> Read:
        found: Read = []
        for ref in batch:
            key = (ref.cache_pass, ref.shard)
            offset = self._cache.shard(*key).extent(ref.index).offset
            fetched = next((got for call in self._calls[key] if offset in (got := call.result())), {})
            found.append((ref, self._cache.shard(*key).chunks(ref.index, fetched)))
        return found
