"""Sample the views of a calibration: to learn tables, to choose steps, and to report errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from pipeline.cache.shard_plan import mix
from pipeline.calibration.job import CalibrationJob
from pipeline.calibration.probe import Probes
from pipeline.codecs.base import Measure
from pipeline.data.shard_planning import plan_views
from pipeline.errors import CodecError
from pipeline.records import TeacherOutput, ViewRecord

CHOOSING, REPORTED = 24, 16  # views to choose the codec's steps, and to report its error
PHASES = {"learning": "learning from", "choosing": "choosing steps on", "reported": "measuring errors on"}  # by part


class ViewSample:
    """A seeded sample of the first pass's views, in three parts. With eight or more views they are disjoint."""

    def __init__(self, job: CalibrationJob) -> None:
        self._job = job
        self._checked: set[str] = set()  # parts whose outputs are all finite
        self._phase = ""
        self.scored = job.teacher.scored
        self._probes = Probes(job.teacher, job.sections.views.seed, self._checked_views, job.log)
        seed, limit = job.sections.views.seed, job.sections.cache.calibration_views
        images = sorted(job.images.ids, key=lambda image: mix(seed, -1, image))[:limit]
        choosing, reported = min(CHOOSING, len(images) // 6), min(REPORTED, len(images) // 8)
        self.parts = {
            "learning": images[choosing + reported :],
            "choosing": images[:choosing] or images,
            "reported": images[choosing:][:reported] or images,
        }

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        if part != "choosing":  # this part takes little time
            self._begin(part)
        for views, records in self._views(part):
            # One view at a time: the fit needs several times the memory of a view.
            yield from self._output(views, records).each()
        self._checked.add(part)

    def probes(self, part: str, losses: Sequence[str]) -> Iterator[tuple[TeacherOutput, Measure]]:
        self._begin(part)
        return self._probes(part, losses)

    def _begin(self, part: str) -> None:
        """Show the phase. A phase takes minutes and runs each view several times."""
        if part != self._phase:
            self._phase = part
            self._job.progress.start(f"codec    {PHASES[part]} {len(self.parts[part])} views", None)

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
        for batch in self._readable(self.parts[part]):
            found = True
            yield batch
        if not found and part != "learning":  # all images of this part are in quarantine
            yield from self._readable(self.parts["learning"])

    def _readable(self, images: list[int]) -> Iterator[tuple[list[Tensor], list[ViewRecord]]]:
        shards = plan_views(self._job.images, self._job.views, 0, self._job.plan["layout"], images)
        batches = [(shard, batch) for shard in shards for batch in shard.batches]
        for _, batch in self._job.loader(batches).batches(skip_broken=self._job.sections.cache.quarantine):
            self._job.progress.advance(len(batch.views), 0)
            yield batch.views, batch.records
