"""Which samples form which batch of an epoch: a function of (samples, seed, epoch, global batch size) alone.

A batch here is that of one step, over all ranks; each rank takes its share of it. So neither the number of ranks nor
that of workers changes what a step learns from, and a run can go on with another number of either.

Shards are dealt to canonical streams in an order drawn for the epoch; a stream reads its shards one after another and
shuffles within a window of a few. Landscape and portrait views are batched apart (as mmdet's AspectRatioBatchSampler);
what is left over is pooled over the streams at the epoch's end, so that no sample is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.cache.shard_plan import mix
from pipeline.records import SampleRef

STREAMS = 64
BATCHES_PER_STREAM = 8  # fewer streams rather than shorter ones
WINDOW = 4  # shards that are shuffled together: the reader has this many open per stream

Batch = list[SampleRef]


def epoch_batches(shards: Sequence[Sequence[SampleRef]], seed: int, epoch: int, batch_size: int) -> list[Batch]:
    """Return all batches of one epoch in order. Every sample occurs exactly once."""
    order = sorted(range(len(shards)), key=lambda n: mix(seed, epoch, 1, n))
    total = sum(len(shard) for shard in shards)
    streams = max(1, min(STREAMS, total // (batch_size * BATCHES_PER_STREAM), len(shards)))
    queues: list[list[Batch]] = []
    rest: dict[bool, Batch] = {True: [], False: []}
    for stream in range(streams):
        full, left = _stream_batches([shards[n] for n in order[stream::streams]], seed, epoch, batch_size)
        queues.append(full)
        for landscape, samples in left.items():
            rest[landscape] += samples
    batches = [queue[i] for i in range(max(map(len, queues))) for queue in queues if i < len(queue)]
    for samples in rest.values():
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
    """Return one rank's part of a step's batch, as even as can be.

    Only what is left over at an epoch's end may be too small for every rank to get a sample: it is then repeated.
    """
    whole = batch * -(-world // len(batch))
    return whole[rank * len(whole) // world : (rank + 1) * len(whole) // world]
