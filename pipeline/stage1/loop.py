"""Stage 1's loop: load views, run the teacher, encode its output, commit shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from pipeline.cache.canonical import digest, read_json
from pipeline.cache.layout import pass_folder, shard_name
from pipeline.cache.schema import read_codec
from pipeline.cache.shard_plan import ShardPlan
from pipeline.cache.sidecar import Sidecar
from pipeline.calibration.calibrate import find_drift
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import positions
from pipeline.errors import PipelineError
from pipeline.stage1.commit import BackgroundCommitter
from pipeline.stage1.encode import BackgroundEncoder
from pipeline.stage1.job import Job
from pipeline.stage1.loader import Batch
from pipeline.stage1.quarantine import add_to_quarantine, quarantine_broken_images
from pipeline.stage1.shard import new_shard
from pipeline.stage1.target import ShardTarget
from pipeline.text import one_line

LOGGER = logging.getLogger("pipeline")
NO_VIEWS: Batch = ((0, 0), ())


@dataclass(frozen=True)
class ClaimedShard:
    """A missing shard claimed by this rank: its number in the pass, and its plan without quarantined images."""

    number: int
    plan: ShardPlan


def make_shards(job: Job, codec: Codec, number: int, plans: list[ShardPlan], missing: list[int]) -> None:
    """Make this rank's share of the missing shards of pass `number`: load -> run -> encode -> commit.

    A batch is encoded on a thread while the teacher computes the next one. A shard is committed on another one, if its
    format allows that.
    """
    codec_digest, folder = digest(read_json(job.root / "codec.json")), pass_folder(job.root, number)
    reporter, broken = ShardReporter(job, number), BrokenImages()
    loader = job.loader(claim_batches(job, number, plans, missing))
    loaded = loader.batches(broken=broken.add if job.sections.cache.quarantine else None)
    with (
        BackgroundCommitter(reporter.report) as committer,
        BackgroundEncoder(codec, not job.sections.teacher.tf32) as encoder,
    ):
        for claimed, batches in groupby(loaded, key=itemgetter(0)):
            target = make_target(job, codec, codec_digest, number, claimed)
            with new_shard(target) as shard:
                for _, batch in batches:
                    if not batch.views:  # all images are in quarantine; the empty shard is still written
                        continue
                    encoder.submit(job.teacher(batch.views), batch.records, shard.add)
                    job.progress.advance(len(batch.views), 0)
                encoder.finish()
                reasons = broken.take(claimed)
                add_to_quarantine(folder, reasons)
                made = ClaimedShard(claimed.number, claimed.plan.without(set(reasons)))
                if shard.background:
                    committer.submit(made, shard.commit)
                else:
                    reporter.report(made, shard.commit())
        committer.finish()


class BrokenImages:
    """The broken images of the shards that are being made. The loader is ahead of the shards."""

    def __init__(self) -> None:
        self._reasons: dict[int, dict[int, str]] = {}  # by shard, then by image id

    def add(self, claimed: ClaimedShard, image: int, error: PipelineError) -> None:
        """Note a broken image of a shard."""
        self._reasons.setdefault(claimed.number, {})[image] = one_line(str(error))

    def take(self, claimed: ClaimedShard) -> dict[int, str]:
        """Return the reasons by image id of a shard that is made."""
        return self._reasons.pop(claimed.number, {})


def claim_batches(
    job: Job, number: int, plans: list[ShardPlan], missing: list[int]
) -> Iterator[tuple[ClaimedShard, Batch]]:
    """Yield the planned batches of the missing shards that this rank claims, shard by shard.

    A shard of format version 1 has the sizes of its samples first. If the config allows quarantine, its views are
    therefore read once in advance, and broken images are left out.
    """
    for n in job.ranks.claim(f"pass {number}", missing):
        plan = plans[n]
        if job.sections.cache.quarantine and job.plan["version"] == 1:
            views = job.loader((n, batch) for batch in plan.batches)
            plan = plan.without(quarantine_broken_images(pass_folder(job.root, number), views))
        claimed = ClaimedShard(n, plan)
        for batch in plan.batches or (NO_VIEWS,):
            yield claimed, batch


def make_target(job: Job, codec: Codec, codec_digest: str, number: int, claimed: ClaimedShard) -> ShardTarget:
    """Return the path and the head of a claimed shard of pass `number`."""
    return ShardTarget(
        pass_folder(job.root, number) / shard_name(claimed.number),
        job.plan["version"],
        {"pass": number, "shard": claimed.number, "plan": digest(job.plan), "recipe": job.plan["recipe_digest"]},
        codec,
        codec_digest,
        claimed.plan,
        [job.teacher.levels(pad) for _, _, pad in claimed.plan.samples],
    )


class ShardReporter:
    """Reports each committed shard to the progress bar and the log, with a warning if it differs from calibration."""

    def __init__(self, job: Job, number: int) -> None:
        self._job, self._folder = job, pass_folder(job.root, number)
        self._expected = read_codec(job.root / "codec.json").get("measured", {})
        self._last = time.perf_counter()

    def report(self, claimed: ClaimedShard, sidecar: Sidecar) -> None:
        """Report a committed shard, with the seconds since the previous one."""
        self._job.progress.advance(0, sum(sidecar.bytes_by_array.values()))
        now = time.perf_counter()
        seconds, self._last = max(now - self._last, 1e-9), now
        views = len(sidecar.samples)
        LOGGER.info(
            f"{self._folder.name}/{sidecar.shard}: {views} views, {sidecar.size / 1e6:.2f} MB, {seconds:.1f} s, "
            f"{views / seconds:.1f} views/s"
        )
        places = sum(positions(self._job.teacher.levels(pad)) for _, _, pad in claimed.plan.samples)
        for line in find_drift(self._folder / sidecar.shard, sidecar, places, self._expected):
            self._job.log(line)
