"""Calibrate the codec's tables and steps on a seeded sample of views, once per cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.shard_format import ShardFormat
from pipeline.cache.sidecar import Sidecar
from pipeline.cache.versions import FORMATS
from pipeline.calibration.job import CalibrationJob
from pipeline.calibration.sample import ViewSample, warn_if_few
from pipeline.codecs.base import Codec
from pipeline.codecs.group import open_codec, save_codec
from pipeline.codecs.packing import positions
from pipeline.codecs.registry import calibrate_codec
from pipeline.codecs.summary import describe_student, list_warnings, promise
from pipeline.precision import precision
from pipeline.storage.place import Place

DRIFT = 2.0  # warn if the bytes or errors of a shard are this many times those found by calibration


def load_or_calibrate_codec(job: CalibrationJob, sample: ViewSample | None = None) -> Codec:
    """Open the codec of the job's cache, or calibrate it on a seeded sample of views (or `sample`) and save it.

    Raise CodecError where it cannot be calibrated, CorruptCache where it cannot be opened.
    """
    root, options = job.root, job.sections.cache.codec
    if (root / "codec.json").exists():
        return open_codec(Cache(root))
    warn = sample is None and options.fitted  # the small sample of a forecast is not what stage 1 will use
    sample = sample or ViewSample(job)
    job.log(f"codec    {options.type}, calibrating on {sample.views} views")
    few = warn_if_few(sample.views) if warn else None
    if few:
        job.log(f"warning  {few}")
    try:
        with deterministic():
            codec = calibrate_codec(options, sample)
            measured = measure_cost(codec, sample, FORMATS[job.plan["version"]])
    finally:
        job.progress.stop()
    save_codec(codec, root, measured)
    if sample.states_errors:
        job.log(describe_calibration(codec, measured))
    for line in list_warnings(codec.settings, measured) if warn else ():
        job.log(f"warning  {line}")
    return codec


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Switch off TF32 and nondeterministic convolutions, so that a repeated calibration gives the same codec."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with precision(False):
            yield
    finally:
        torch.backends.cudnn.deterministic = before


def measure_cost(codec: Codec, sample: ViewSample, shard_format: ShardFormat) -> dict[str, Any]:
    """Measure the bytes per position of every array, and the errors of the coded values."""
    views, places, sizes, errors = 0, 0, dict[str, int](), dict[str, float]()
    for output in sample.outputs("reported"):
        samples, measured = codec.encode(output)
        views, places = views + len(samples), places + len(samples) * positions(output.levels)
        for name, value in measured.items():
            errors[name] = errors.get(name, 0.0) + value * len(samples)
        for encoded in samples:
            for name, chunk in shard_format.encode_alone(codec, output.levels, encoded).items():
                sizes[name] = sizes.get(name, 0) + len(chunk)
    return {
        **shard_format.calibration_views({part: len(images) for part, images in sample.parts.items()}, sample.read),
        "bytes_per_position": {name: size / places for name, size in sizes.items()},
        "errors": {name: value / views for name, value in errors.items()},
        **({} if sample.scored else {"map": "ones"}),
    }


def describe_calibration(codec: Codec, measured: dict[str, Any]) -> str:
    """Describe a calibration in a few lines for the log."""
    cost = sum(measured["bytes_per_position"].values())
    kept = (f"{1 - error**2:.2%} of the {name.removesuffix('_error')}'" for name, error in measured["errors"].items())
    lines = [
        f"codec    {promise(codec.settings)}",
        *describe_student(codec.settings),
        f"codec    keeps {' and '.join(kept)} weighted energy; {cost:.2f} bytes a position expected",
    ]
    return "\n".join(lines)


def find_drift(path: Place, sidecar: Sidecar, places: int, expected: dict[str, Any]) -> list[str]:
    """Return a warning for each error and size of a shard of `places` positions above DRIFT times the calibration's."""
    lines = []
    for name, value in expected.get("errors", {}).items():
        if value > 0 and sidecar.measured.get(name, 0.0) > DRIFT * value:
            lines.append(f"{name} {sidecar.measured[name]:.3f}, calibration measured {value:.3f}")
    for name, value in expected.get("bytes_per_position", {}).items():
        found = sidecar.bytes_by_array.get(name, 0) / max(1, places)
        if found > DRIFT * value:
            lines.append(f"{found:.2f} bytes a position for {name}, calibration measured {value:.2f}")
    return [
        f"warning  {path.parent.name}/{path.name}: {line}; check that these images resemble the calibration views"
        for line in lines
    ]
