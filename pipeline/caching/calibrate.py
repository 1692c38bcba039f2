"""Calibration: the codec's tables and steps from a seeded sample of views, once per cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.cache.arrays import encode_sample
from pipeline.cache.cache import Cache
from pipeline.cache.place import Place
from pipeline.cache.plan import mix
from pipeline.cache.sidecar import Sidecar
from pipeline.caching.job import Job
from pipeline.caching.probe import Probes
from pipeline.codec import codec_settings, load_codec, new_codec, save_codec
from pipeline.codec.base import Codec, Measure, positions
from pipeline.codec.fit import PROFILES
from pipeline.codec.quality import asked
from pipeline.errors import CodecError
from pipeline.mm import plain
from pipeline.planning import plan_views
from pipeline.records import TeacherOutput, ViewRecord
from pipeline.report import promise
from pipeline.teacher.model import precision

CHOOSING, REPORTED = 24, 16  # views that choose the codec's steps, and views that its error is reported on
BEYOND = 1.5  # an error on fresh views that is this many times the one asked for is reported
PHASES = {"learning": "learning from", "choosing": "choosing steps on", "reported": "measuring errors on"}  # by part
DRIFT = 2.0  # a shard whose bytes or errors are this many times what calibration found is reported


class ViewSample:
    """A seeded sample of the first pass's views: those to learn from, those to choose by, those to report on.

    The three are apart, unless there are fewer than eight views.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._sound: set[str] = set()
        self._phase = ""
        self._probes = Probes(job.teacher, job.sections.views.seed, self._flat, job.log)
        seed, limit = job.sections.views.seed, job.sections.cache.calibration_views
        images = sorted(job.images.ids, key=lambda image: mix(seed, -1, image))[:limit]
        choosing, reported = min(CHOOSING, len(images) // 6), min(REPORTED, len(images) // 8)
        self.parts = {
            "learning": images[choosing + reported :], "choosing": images[:choosing] or images,
            "reported": images[choosing:][:reported] or images,
        }  # fmt: skip

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        if part != "choosing":  # where whole outputs are asked for, that is soon done
            self._begin(part)
        for views, records in self._views(part):
            # What fitting makes of a view is several times its size.
            yield from self._taught(views, records).each()
        self._sound.add(part)

    def probes(self, part: str, losses: Sequence[str]) -> Iterator[tuple[TeacherOutput, Measure]]:
        self._begin(part)
        return self._probes(part, losses)

    def _begin(self, part: str) -> None:
        """Tell which phase this is; it takes minutes, and views are run many times."""
        if part != self._phase:
            self._phase = part
            self._job.progress.start(f"codec    {PHASES[part]} {len(self.parts[part])} views", None)

    def _flat(self, part: str) -> Iterator[Tensor]:
        for views, records in self._views(part):
            if part not in self._sound:
                self._taught(views, records)
            yield from views
        self._sound.add(part)

    def _taught(self, views: list[Tensor], records: list[ViewRecord]) -> TeacherOutput:
        """The teacher's output. Raises CodecError where calibration would only choke on it."""
        output = self._job.teacher(views)
        unsound = output.unsound()
        if unsound is not None:
            where = f"image {records[unsound[0]].image_id} (view {records[unsound[0]].view}): level {unsound[1]}"
            raise CodecError(f"{where}: the teacher's output holds NaN or infinity")
        return output

    def _views(self, part: str) -> Iterator[tuple[list[Tensor], list[ViewRecord]]]:
        found = False
        for batch in self._readable(self.parts[part]):
            found = True
            yield batch
        if not found and part != "learning":  # all of these few images are broken and in quarantine
            yield from self._readable(self.parts["learning"])

    def _readable(self, images: list[int]) -> Iterator[tuple[list[Tensor], list[ViewRecord]]]:
        shards = plan_views(self._job.images, self._job.views, 0, self._job.plan["layout"], images)
        batches = [batch for shard in shards for batch in shard.batches]
        for _, views, records in self._job.loader(batches).batches(skip_broken=self._job.sections.cache.quarantine):
            self._job.progress.advance(len(views), 0)
            yield views, records


def calibrated(job: Job, sample: ViewSample | None = None) -> Codec:
    """The codec of this cache: read back, or calibrated on a seeded sample of views (or the one given) and saved."""
    root = job.root
    if (root / "codec.json").exists():
        return load_codec(root, Cache(root).codec_manifest())
    codec = new_codec(codec_settings(plain(dict(job.sections.cache.codec))))
    sample = sample or ViewSample(job)
    job.log(f"codec    {codec.name}, calibrating on {sum(map(len, sample.parts.values()))} views")
    try:
        with repeatable():
            codec.calibrate(sample)
            measured = expectation(codec, sample)
    finally:
        job.progress.stop()
    save_codec(codec, root, measured)
    job.log(told(codec, measured))
    return codec


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """No TF32, no convolution whose sums depend on the order of threads: a killed calibration must repeat itself."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with precision(False):
            yield
    finally:
        torch.backends.cudnn.deterministic = before


def expectation(codec: Codec, sample: ViewSample) -> dict[str, Any]:
    """What the views to come should cost and lose: bytes a position of every tensor, and the errors of coded values."""
    views, places, sizes, errors = 0, 0, dict[str, int](), dict[str, float]()
    for output in sample.outputs("reported"):
        samples, measured = codec.encode(output)
        views, places = views + len(samples), places + len(samples) * positions(output.levels)
        for name, value in measured.items():
            errors[name] = errors.get(name, 0.0) + value * len(samples)
        for encoded in samples:
            for name, chunk in encode_sample(codec.specs([output.levels], [encoded]), encoded).items():
                sizes[name] = sizes.get(name, 0) + len(chunk)
    return {
        "views": len(sample.parts["learning"]),
        "bytes_per_position": {name: size / places for name, size in sizes.items()},
        "errors": {name: value / views for name, value in errors.items()},
    }


def told(codec: Codec, measured: dict[str, Any]) -> str:
    """The calibration in a line or two, for the log."""
    cost = sum(measured["bytes_per_position"].values())
    kept = (f"{1 - error**2:.2%} of the {name.removesuffix('_error')}'" for name, error in measured["errors"].items())
    lines = [
        f"codec    {promise(codec.settings)}",
        f"codec    keeps {' and '.join(kept)} weighted energy; {cost:.2f} bytes a position expected",
    ]
    found = codec.settings.get("probe_error", {})
    made_for = {*PROFILES[codec.settings["profile"]], "score"} & found.keys() if found else ()
    if any(found[loss] > BEYOND * asked(codec.settings["quality"]) for loss in made_for):
        lines.append("warning  fresh views err by more than was asked; raise cache.calibration_views")
    return "\n".join(lines)


def drift(path: Place, sidecar: Sidecar, places: int, expected: dict[str, Any]) -> list[str]:
    """Lines about a shard of `places` positions that is not what calibration expected; none where it fits."""
    lines = []
    for name, value in expected["errors"].items():
        if value > 0 and sidecar.measured.get(name, 0.0) > DRIFT * value:
            lines.append(f"{name} {sidecar.measured[name]:.3f}, calibration found {value:.3f}")
    for name, value in expected["bytes_per_position"].items():
        found = sidecar.bytes_by_array.get(name, 0) / max(1, places)
        if found > DRIFT * value:
            lines.append(f"{found:.2f} bytes a position for {name}, calibration expected {value:.2f}")
    return [f"warning  {path.parent.name}/{path.name}: {line}; is the sample unlike the rest?" for line in lines]
