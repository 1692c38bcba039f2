"""One pass over the images: what is missing of it is computed, what is whole is left alone."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from pipeline.cache.canonical import digest, read_json, write_json
from pipeline.cache.layout import load_pass_plan, pass_folder, shard_name
from pipeline.cache.manifest import shard_done, write_manifest
from pipeline.cache.shard_plan import ShardPlan
from pipeline.cache.sidecar import Sidecar, load_sidecar
from pipeline.calibration.calibrate import drift
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import positions
from pipeline.data.replay import environment
from pipeline.data.shard_planning import plan_views, require_images
from pipeline.stage1.commit import Behind
from pipeline.stage1.job import Job
from pipeline.stage1.quarantine import Quarantine
from pipeline.stage1.shard import start_shard
from pipeline.storage.files import discard
from pipeline.storage.place import Place, call_each

LOGGER = logging.getLogger("pipeline")


def cache_pass(job: Job, codec: Codec, number: int) -> int:
    """Compute what is missing of one pass, shards dealt out to the ranks. Returns how many samples that was."""
    folder = pass_folder(job.root, number)
    shards = planned(job, number)
    left_out = lambda: set(Quarantine(folder).images)  # noqa: E731
    kept = [shard.without(left_out()) for shard in shards]
    missing = job.ranks.told(missing_shards(job, number, kept) if job.ranks.leads else [])
    if missing or not (folder / "manifest.json").exists():
        if job.ranks.leads:
            discard(folder / "manifest.json")  # a pass is complete only when its manifest is there
        job.progress.start(f"pass {number}", sum(len(kept[n].samples) for n in missing))
        try:
            make_shards(job, codec, number, kept, missing)
            job.ranks.meet()
        finally:
            job.progress.stop()
        kept = [shard.without(left_out()) for shard in shards]
        if job.ranks.leads:
            raw, rows = raw_fp16(job, kept, codec), Quarantine(folder).rows()
            write_manifest(job.root, number, digest(job.plan), len(shards), raw, rows, environment())
        job.ranks.meet()
    return sum(len(kept[n].samples) for n in missing)


def planned(job: Job, number: int) -> list[ShardPlan]:
    """The shards of a pass, written down before the first of them is made."""
    path = pass_folder(job.root, number) / "plan.json"
    if job.ranks.leads and not path.exists():
        shards = plan_views(job.images, job.views, number, job.plan["layout"])
        write_json(path, {"pass": number, "shards": [shard.to_json() for shard in shards]})
    job.ranks.meet()
    shards = load_pass_plan(job.root, number)
    require_images(job.root, number, {image for shard in shards for image, _, _ in shard.samples}, job.images)
    return shards


def missing_shards(job: Job, number: int, shards: list[ShardPlan]) -> list[int]:
    """Numbers of the shards that are not there, or not whole, or of another plan or codec."""
    plan, codec = digest(job.plan), digest(read_json(job.root / "codec.json"))
    done = lambda n: shard_done(job.root, number, n, plan, codec, [row[:2] for row in shards[n].samples])  # noqa: E731
    return [n for n, whole in enumerate(call_each(job.root, done, range(len(shards)))) if not whole]


def make_shards(job: Job, codec: Codec, number: int, shards: list[ShardPlan], missing: list[int]) -> None:
    """Compute and commit this rank's share of the missing shards; one is written while the teacher makes the next."""
    folder, codec_json = pass_folder(job.root, number), read_json(job.root / "codec.json")
    quarantine = Quarantine(folder)
    waiting: deque[tuple[int, ShardPlan]] = deque()  # claimed, in the order of their batches

    def claimed() -> Iterator[Any]:
        for n in job.ranks.claim(f"pass {number}", missing):
            shard = shards[n]
            if job.sections.cache.quarantine:
                shard = shard.without(quarantine.search(job.loader(shard.batches)))
            for batch in shard.batches or [((0, 0), ())]:  # quarantine may leave nothing, and that is a shard too
                waiting.append((n, shard))
                yield batch

    clock = [time.perf_counter()]

    def done(n: int, shard: ShardPlan, size: int) -> None:
        job.progress.advance(0, size)
        path = folder / shard_name(n)
        sidecar = load_sidecar(path.with_suffix(".json"))
        clock.append(time.perf_counter())
        LOGGER.info(shard_line(folder, sidecar, clock[-1] - clock[-2]))
        places = sum(positions(job.teacher.levels(pad)) for _, _, pad in shard.samples)
        for line in drift(path, sidecar, places, codec_json["measured"]):
            job.log(line)

    with Behind(done) as behind:
        for (n, shard), loaded in groupby(job.loader(claimed()).batches(), lambda _: waiting.popleft()):
            head = {"pass": number, "shard": n, "plan": digest(job.plan), "recipe": job.plan["recipe_digest"]}
            commit = start_shard(job.teacher, codec, (batch for batch in loaded if batch[1]), shard,
                                 folder / shard_name(n), head, digest(codec_json),
                                 lambda samples: job.progress.advance(samples, 0))  # fmt: skip
            if codec.ragged:
                behind.commit(n, shard, commit)
            else:
                done(n, shard, commit())
        behind.finish()


def shard_line(folder: Place, sidecar: Sidecar, seconds: float) -> str:
    """One shard for the log file; seconds since the one before it."""
    views = len(sidecar.samples)
    return (
        f"{folder.name}/{sidecar.shard}: {views} views, {sidecar.size / 1e6:.2f} MB, {seconds:.1f} s, "
        f"{views / max(seconds, 1e-9):.1f} views/s"
    )


def raw_fp16(job: Job, shards: list[ShardPlan], codec: Codec) -> int:
    """Bytes that the same tensors take as plain fp16 (the map in one byte), the yardstick of the summary."""
    per_position = 2 * (codec.channels + codec.score_channels) + 1
    samples = (pad for shard in shards for _, _, pad in shard.samples)
    return sum(positions(job.teacher.levels(pad)) * per_position for pad in samples)
