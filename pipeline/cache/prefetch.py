"""Prefetch the samples of coming batches, still compressed, while earlier ones are in use.

A step's samples lie apart (the schedule shuffles within a window of shards), so what hides the distance is less long
ranges than many requests at a time: those of some coming batches, as many as the storage takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.cache.cache import Cache
from pipeline.cache.reader import Chunks
from pipeline.records import SampleRef
from pipeline.storage.base import Fetched
from pipeline.storage.place import storage_of

BATCHES, WORTH = 8, 16 << 20  # prefetched together: this many batches, or fewer once they have so many bytes

Batch = list[SampleRef]
Read = list[tuple[SampleRef, Chunks]]
Shard = tuple[int, int]  # pass, number


def read_batches(cache: Cache, batches: Iterable[Batch]) -> Iterator[Read]:
    """The samples of every batch, in order. Raises CacheError or CorruptCache, when prefetching some batches early."""
    workers = storage_of(cache.root).max_requests
    if workers == 1:
        for batch in batches:
            yield [(ref, cache.shard(ref.cache_pass, ref.shard).chunks(ref.index)) for ref in batch]
        return
    rest = iter(batches)
    with ThreadPoolExecutor(workers) as pool:
        try:
            coming = _Prefetched(cache, rest, pool)
            while coming.batches:
                ready, coming = coming, _Prefetched(cache, rest, pool)  # under way while those before are in use
                yield from map(ready.read, ready.batches)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Prefetched:
    """A few batches whose samples are being fetched; none when there are no more."""

    def __init__(self, cache: Cache, rest: Iterator[Batch], pool: ThreadPoolExecutor) -> None:
        self._cache, self.batches = cache, list[Batch]()
        indices: dict[Shard, list[int]] = {}
        worth = 0
        while len(self.batches) < BATCHES and worth < WORTH and (batch := next(rest, None)):
            self.batches.append(batch)
            cache.open_shards([(ref.cache_pass, ref.shard) for ref in batch], pool.map)
            for ref in batch:
                key = (ref.cache_pass, ref.shard)
                indices.setdefault(key, []).append(ref.index)
                worth += cache.shard(*key).extent(ref.index).size
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
