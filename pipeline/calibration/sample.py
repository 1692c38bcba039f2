"""Sample the views of a calibration: to learn tables, to choose steps, and to report errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor

from pipeline.cache.shard_plan import mix
from pipeline.calibration.job import CalibrationJob
from pipeline.calibration.probes import TUNING, Probes
from pipeline.codecs.base import Measure
from pipeline.codecs.summary import FEWEST
from pipeline.data.shard_planning import plan_views
from pipeline.errors import CodecError
from pipeline.losses.registry import loss_named
from pipeline.records import TeacherOutput, ViewRecord

CHOOSING, REPORTED = 48, 32  # views to choose the codec's steps, and to report its error
PHASES = {"learning": "learning from", "choosing": "counting symbols of", "reported": "measuring sizes of"}  # by part
PROBED = {
    "choosing": "choosing the {}s' step on up to",
    "reported": "measuring the {}s' error on up to",
}  # the same with a probe


def divide(count: int) -> tuple[int, int]:
    """Return how many of `count` calibration views choose the steps, and how many report the error."""
    most = count // 4 if count < 4 * FEWEST else FEWEST  # at least half of the views remain to learn from
    return min(CHOOSING, max(most, count // 6)), min(REPORTED, max(most, count // 8))


def warn_if_few(count: int) -> str | None:
    """Return a warning where a calibration on `count` views has too few to trust its error."""
    choosing, reported = divide(count)
    if min(choosing, reported) >= FEWEST:
        return None
    return (
        f"calibration on {count} views: {choosing or count} choose the steps and {reported or count} report the error, "
        f"expected at least {FEWEST} each; increase cache.calibration_views to {4 * FEWEST} or more, or add images"
    )


class ViewSample:
    """A seeded sample of the first pass's views, in three parts. With eight or more views they are disjoint.

    states_errors: whether enough views report to tell people the errors.
    """

    states_errors = True

    def __init__(self, job: CalibrationJob) -> None:
        self._job = job
        self._checked: set[str] = set()  # parts whose outputs are all finite
        self.scored = job.teacher.scored
        self._rounds = dict[str, int]()  # by phase
        self.read = dict[str, set[tuple[int, int]]]()  # the readable views (image id, view) of each part
        self._probes = Probes(job.teacher, job.sections.views.seed, self._checked_views, job.log)
        seed, limit = job.sections.views.seed, job.sections.cache.calibration_views
        images = sorted(job.images.ids, key=lambda image: mix(seed, -1, image))[:limit]
        choosing, reported = divide(len(images))
        self.views = len(images)
        self.parts = {
            "learning": images[choosing + reported :],
            "choosing": images[:choosing] or images,
            "reported": images[choosing:][:reported] or images,
        }

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        self._begin(PHASES[part], len(self.parts[part]))
        for views, records in self._views(part):
            # One view at a time: the fit needs several times the memory of a view.
            yield from self._output(views, records).each()
        self._checked.add(part)

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        what = loss_named(losses[0]).compares
        if not self._probes.has(what, near):
            reads = self._probes.reads(what, {part: len(images) for part, images in self.parts.items()})
            self._begin(f"tuning probes of the {what}s on", min(TUNING, len(self.parts["choosing"])), reads)
            self._probes.make(what, near)
        self._begin(PROBED[part].format(what), len(self.parts[part]))
        return self._probes(part, losses, near)

    def unexplained(self, what: str, near: bool = False) -> float:
        return self._probes.unexplained(what, near)

    def training(self, steps: int) -> Callable[[], bool | None]:
        self._job.log(f"codec    training the score network, {steps} steps")
        self._job.progress.start("codec", steps)
        return partial(self._job.progress.advance, 1, 0)

    def _begin(self, phase: str, views: int, reads: int | None = None) -> None:
        """Log the phase and start its bar. A repeated phase has a number. reads: views to read, if not `views`."""
        self._rounds[phase] = number = self._rounds.get(phase, 0) + 1
        self._job.log(f"codec    {phase} {views} views" + (f", round {number}" if number > 1 else ""))
        self._job.progress.start("codec", views if reads is None else reads)

    def _checked_views(self, part: str) -> Iterator[Tensor]:
        for views, records in self._views(part):
            if part not in self._checked:
                self._output(views, records)
            yield from views
        self._checked.add(part)

    def _output(self, views: list[Tensor], records: list[ViewRecord]) -> TeacherOutput:
        """Run the teacher. Raise CodecError, which names the image, where its output has NaN or infinity."""
        output = self._job.teacher(views)
        unsound = output.unsound()
        if unsound is not None:
            where = f"image {records[unsound[0]].image_id} (view {records[unsound[0]].view}): level {unsound[1]}"
            raise CodecError(f"{where}: NaN or infinity in the teacher's output")
        return output

    def _views(self, part: str) -> Iterator[tuple[list[Tensor], list[ViewRecord]]]:
        found = False
        for batch in self._readable(part, self.parts[part]):
            found = True
            yield batch
        if not found and part != "learning":  # all images of this part are in quarantine
            yield from self._readable(part, self.parts["learning"])

    def _readable(self, part: str, images: list[int]) -> Iterator[tuple[list[Tensor], list[ViewRecord]]]:
        shards = plan_views(self._job.images, self._job.views, 0, self._job.plan["layout"], images)
        batches = [(shard, batch) for shard in shards for batch in shard.batches]
        for _, batch in self._job.loader(batches).batches(skip_broken=self._job.sections.cache.quarantine):
            self._job.progress.advance(len(batch.views), 0)
            self.read.setdefault(part, set()).update((record.image_id, record.view) for record in batch.records)
            yield batch.views, batch.records
