"""The batches of an epoch, a pure function of (samples, seed, epoch, global batch size).

A batch contains the samples of one step over all ranks, and each rank takes its share. The numbers of ranks and workers
therefore do not change what a step learns from, and a run can resume with other numbers.

Shards are dealt to canonical streams in an order drawn for the epoch. A stream reads its shards one after another and
shuffles within a window of WINDOW shards. Landscape and portrait views are batched separately, as in mmdet's
AspectRatioBatchSampler. At the end of the epoch, the remaining samples of all streams are pooled, so no sample is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.cache.shard_plan import mix
from pipeline.records import SampleRef

STREAMS = 64
BATCHES_PER_STREAM = 8  # minimum; small epochs use fewer streams
WINDOW = 4  # shards that are shuffled together; the reader has this many open per stream

Batch = list[SampleRef]


def epoch_batches(shards: Sequence[Sequence[SampleRef]], seed: int, epoch: int, batch_size: int) -> list[Batch]:
    """Return all batches of one epoch, in order. Every sample occurs exactly once."""
    order = sorted(range(len(shards)), key=lambda n: mix(seed, epoch, 1, n))
    total = sum(len(shard) for shard in shards)
    streams = max(1, min(STREAMS, total // (batch_size * BATCHES_PER_STREAM), len(shards)))
    queues: list[list[Batch]] = []
    remaining: dict[bool, Batch] = {True: [], False: []}
    for stream in range(streams):
        full, pools = _stream_batches([shards[n] for n in order[stream::streams]], seed, epoch, batch_size)
        queues.append(full)
        for landscape, samples in pools.items():
            remaining[landscape] += samples
    batches = [queue[i] for i in range(max(map(len, queues))) for queue in queues if i < len(queue)]
    for samples in remaining.values():
        batches += [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
    return batches


def _stream_batches(
    shards: Sequence[Sequence[SampleRef]], seed: int, epoch: int, batch_size: int
) -> tuple[list[Batch], dict[bool, Batch]]:
    full: list[Batch] = []
    pools: dict[bool, Batch] = {True: [], False: []}
    for start in range(0, len(shards), WINDOW):
        window = [ref for shard in shards[start : start + WINDOW] for ref in shard]
        window.sort(key=lambda ref: mix(seed, epoch, 2, ref.image_id))
        for ref in window:
            pool = pools[ref.landscape]
            pool.append(ref)
            if len(pool) == batch_size:
                full.append(pool.copy())
                pool.clear()
    return full, pools


def take_share(batch: Batch, rank: int, world: int) -> Batch:
    """Return one rank's share of a step's batch. Shares are as equal as possible.

    Only the last batches of an epoch can have fewer samples than ranks. Their samples are then repeated.
    """
    repeated = batch * -(-world // len(batch))
    return repeated[rank * len(repeated) // world : (rank + 1) * len(repeated) // world]
