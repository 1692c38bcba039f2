"""Calibration: the codec's tables and steps from a seeded sample of views, once per cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.cache.arrays import encode_sample
from pipeline.cache.cache import Cache
from pipeline.cache.sidecar import Sidecar
from pipeline.calibration.sample import ViewSample
from pipeline.codecs.base import Codec
from pipeline.codecs.frs.settings import PROFILES, asked
from pipeline.codecs.group import load_codec, save_codec
from pipeline.codecs.packing import positions
from pipeline.codecs.registry import codec_settings, new_codec
from pipeline.codecs.summary import promise
from pipeline.mmdet_compat.registry import plain
from pipeline.stage1.job import Job
from pipeline.storage.place import Place
from pipeline.teacher.model import precision

BEYOND = 1.5  # an error on fresh views that is this many times the one asked for is reported
DRIFT = 2.0  # a shard whose bytes or errors are this many times what calibration found is reported


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
