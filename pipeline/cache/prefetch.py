"""Samples of coming batches, still compressed, fetched from afar while earlier ones are in use.

A step's samples lie apart (the schedule shuffles within a window of shards), so what hides the distance is less long
ranges than many requests at a time: those of some coming batches, AT_A_TIME of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.cache.cache import Cache
from pipeline.cache.reader import Chunks
from pipeline.records import SampleRef
from pipeline.storage.object_store import RemotePath
from pipeline.storage.place import AT_A_TIME
from pipeline.storage.ranges import Fetched

BATCHES, WORTH = 8, 16 << 20  # asked for together: this many batches, or fewer once they are worth so many bytes

Batch = list[SampleRef]
Read = list[tuple[SampleRef, Chunks]]
Shard = tuple[int, int]  # pass, number


def read_batches(cache: Cache, batches: Iterable[Batch]) -> Iterator[Read]:
    """The samples of every batch, in order. Raises CacheError or CorruptCache, from afar some batches early."""
    if not isinstance(cache.root, RemotePath):
        for batch in batches:
            yield [(ref, cache.shard(ref.cache_pass, ref.shard).chunks(ref.index)) for ref in batch]
        return
    rest = iter(batches)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        try:
            coming = _Asked(cache, rest, pool)
            while coming.batches:
                asked, coming = coming, _Asked(cache, rest, pool)  # under way while those before are in use
                yield from map(asked.read, asked.batches)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Asked:
    """A few batches whose samples are under way; none when there are no more."""

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
