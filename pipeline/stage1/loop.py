"""Stage 1's loop: load views, run the teacher, encode its output, commit shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pipeline.cache.canonical import digest, read_json
from pipeline.cache.layout import pass_folder, shard_name
from pipeline.cache.schema import read_codec
from pipeline.cache.shard_plan import ShardPlan
from pipeline.cache.sidecar import Sidecar
from pipeline.calibration.calibrate import find_drift
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import positions
from pipeline.errors import PipelineError
from pipeline.records import TeacherOutput, ViewRecord
from pipeline.stage1.commit import BackgroundCommitter
from pipeline.stage1.encode import BackgroundEncoder
from pipeline.stage1.job import Job
from pipeline.stage1.loader import Batch
from pipeline.stage1.quarantine import add_to_quarantine, quarantine_broken_images
from pipeline.stage1.shard import new_shard
from pipeline.stage1.target import NewShard, ShardTarget
from pipeline.text import one_line

LOGGER = logging.getLogger("pipeline")
NO_VIEWS: Batch = ((0, 0), ())


@dataclass(frozen=True)
class ClaimedShard:
    """A missing shard claimed by this rank: its number in the pass, and its plan without quarantined images."""

    number: int
    plan: ShardPlan


def make_shards(job: Job, codec: Codec, number: int, plans: list[ShardPlan], missing: list[int]) -> None:
    """Make this rank's share of the missing shards of pass `number`: load -> run -> encode -> commit."""
    broken = BrokenImages()
    loader = job.loader(claim_batches(job, number, plans, missing))
    with ShardMaker(job, codec, number, broken) as maker:
        for claimed, batch in loader.batches(broken=broken.add if job.sections.cache.quarantine else None):
            try:
                output = job.teacher(batch.views) if batch.views else None
            except Exception:
                if not maker.makes(claimed):  # the shard before lacks nothing of this batch
                    maker.finish()
                raise
            if not maker.makes(claimed):
                maker.complete()
                maker.start(claimed)
            if output is not None:  # otherwise all images are in quarantine; an empty shard is still written
                maker.add(output, batch.records)
                job.progress.advance(len(batch.views), 0)
            del output  # the next one may be large
        maker.finish()


class ShardMaker:
    """Makes the shards of a pass, one after another. A context manager: an error removes the unfinished shard.

    A batch is encoded on a thread while the teacher computes the next one, even if that belongs to the next shard. A
    shard is committed on another thread, if its format allows that.
    """

    def __init__(self, job: Job, codec: Codec, number: int, broken: BrokenImages) -> None:
        self._job, self._codec, self._number, self._broken = job, codec, number, broken
        self._codec_digest = digest(read_json(job.root / "codec.json"))
        self._reporter = ShardReporter(job, number)
        self._claimed: ClaimedShard | None = None
        self._shard: NewShard

    def __enter__(self) -> ShardMaker:
        self._stack, self._opened = ExitStack(), ExitStack()
        self._committer = self._stack.enter_context(BackgroundCommitter(self._reporter.report))
        threaded = not self._job.sections.teacher.tf32
        self._encoder = self._stack.enter_context(BackgroundEncoder(self._codec, threaded))
        self._stack.push(self._opened.__exit__)
        return self

    def makes(self, claimed: ClaimedShard) -> bool:
        """Return whether this is the shard that was started last."""
        return self._claimed is not None and self._claimed.number == claimed.number

    def start(self, claimed: ClaimedShard) -> None:
        """Start a shard."""
        target = make_target(self._job, self._codec, self._codec_digest, self._number, claimed)
        self._claimed, self._shard = claimed, self._opened.enter_context(new_shard(target))

    def add(self, output: TeacherOutput, records: Sequence[ViewRecord]) -> None:
        """Encode a batch of the current shard."""
        self._encoder.submit(output, records, self._shard.add)

    def complete(self) -> None:
        """Wait for the last batch of the current shard, if there is one, and commit it."""
        self._encoder.finish()
        if self._claimed is None:
            return
        reasons = self._broken.take(self._claimed)
        add_to_quarantine(pass_folder(self._job.root, self._number), reasons)
        made = ClaimedShard(self._claimed.number, self._claimed.plan.without(set(reasons)))
        if self._shard.background:
            self._committer.submit(made, self._shard.commit)
        else:
            self._reporter.report(made, self._shard.commit())
        self._opened.close()

    def finish(self) -> None:
        """Complete the last shard, and wait for all commits."""
        self.complete()
        self._committer.finish()

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


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
