"""Measure what each prediction of the frs2 codec saves, at equal gradient error of a trained student.

python benchmarks/codec2.py --config C --student CHECKPOINT --teacher CONFIG CHECKPOINT --options data_root=DATA \
    --scale 667 400 --measure-at 1333 800 --json docs/results/codec2.json

Variants: frs; frs2 that predicts the levels alone, the scores alone, and both. Each is calibrated on train images so
that the student, in place of the probe, has the requested error. It is then measured on val images with steps around
the calibrated ones. The bytes are interpolated to the requested error, so the rows of one quality compare bytes at
equal error. "unequal" marks a row whose bytes were extrapolated by more than a factor 1.5 of the error. --json adds its
rows to those of an earlier run.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import codec as found_errors
from benchmarks import common
from benchmarks.student import Student, missed_share
from benchmarks.views import draw
from pipeline.cache.version2 import encode_sample
from pipeline.calibration.gradient import StudentPass
from pipeline.codecs.base import Codec, Measure
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.packing import positions, stack
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.progress import Silent
from pipeline.records import TeacherOutput
from pipeline.stage1.job import open_job
from pipeline.teacher.model import Teacher

VARIANTS: dict[str, dict[str, Any]] = {
    "frs": {"type": "frs"},
    "levels": {"type": "frs2", "predict_scores": False},
    "scores": {"type": "frs2", "predict_levels": False},
    "levels and scores": {"type": "frs2"},
}
FACTORS = (0.7, 1.0, 1.4)  # of the calibrated step
FAR = 1.5
CHOOSING, REPORTED = 8, 2
COLUMNS = [
    *("teacher", "megapixels", "variant", "quality", "kb_view", "kb_features", "kb_scores", "kb_map"),
    *("err_features", "err_scores", "decode_ms", "decode_gmac", "calibration_s", "unequal"),
]


class StudentSample:
    """A calibration sample whose probe is a trained student. views: (3, h, w) uint8; outputs are kept as float16."""

    def __init__(self, teacher: Teacher, student: Student, views: Sequence[Tensor]) -> None:
        self._teacher, self._student = teacher, student
        ends = (CHOOSING, CHOOSING + REPORTED)
        self._views = {"choosing": views[: ends[0]], "reported": views[ends[0] : ends[1]], "learning": views[ends[1] :]}
        self._kept = [halved(teacher([view])) for view in self._views["learning"]]

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        if part == "learning":
            return map(as_float, self._kept)
        return (self._teacher([view]) for view in self._views[part])

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        compared = [loss for loss in losses if loss in ("feature", "score") and not near]
        for view in self._views[part] if compared else ():
            exact = self._teacher([view])
            outputs = self._student(view)
            passed = StudentPass({loss: outputs[loss] for loss in compared}, self._student.parameters(), exact)
            yield exact, partial(relative_errors, passed)

    def unexplained(self, what: str, near: bool = False) -> float:
        return missed_share(what, self._teacher, self._student, list(self._views["reported"])) or 0.0

    def training(self, steps: int) -> Callable[[], None]:
        print(f"training the network, {steps} steps", flush=True)
        return lambda: None


def relative_errors(passed: StudentPass, coded: TeacherOutput) -> dict[str, float]:
    """Return the gradient error of each loss."""
    return passed.errors(coded).relative


def as_float(output: TeacherOutput) -> TeacherOutput:
    """Return an output of `halved` as float32."""
    return TeacherOutput([f.float() for f in output.features], [s.float() for s in output.scores], output.frs)


def halved(output: TeacherOutput) -> TeacherOutput:
    """Return an output with float16 features and scores."""
    return TeacherOutput([f.half() for f in output.features], [s.half() for s in output.scores], output.frs)


def with_steps(codec: Codec, factors: dict[str, float]) -> Frs:
    """Return a codec with its steps multiplied by a factor for each tensor."""
    assert isinstance(codec, Frs)
    steps: dict[str, Any] = {f"{what}_step": codec.calibration.step(what) * f for what, f in factors.items()}
    return type(codec)(codec.options, replace(codec.calibration, **steps), codec.tables)


def interpolate(points: Sequence[tuple[float, float]], target: float) -> float:
    """Return the value at an error of `target`, from points (error, value), on logarithmic scales."""
    (x0, y0), (x1, y1) = _around(sorted((math.log(x), math.log(y)) for x, y in points), math.log(target))
    slope = 0.0 if x1 == x0 else (y1 - y0) / (x1 - x0)
    return math.exp(y0 + slope * (math.log(target) - x0))


def _around(points: list[tuple[float, float]], x: float) -> list[tuple[float, float]]:
    """Return the two points of an ascending list around x, or nearest to it."""
    after = sum(point[0] < x for point in points)
    start = min(max(after - 1, 0), len(points) - 2)
    return points[start : start + 2]


def measure(codec: Codec, teacher: Teacher, student: Student, views: Sequence[Tensor], target: float) -> dict[str, Any]:
    """Return bytes of each array at the target error, and the errors found at the calibrated steps."""
    errors: dict[str, dict[float, list[float]]] = {what: {f: [] for f in FACTORS} for what in codec.kinds}
    kb: dict[str, dict[float, list[float]]] = {name: {f: [] for f in FACTORS} for name in ("features", "scores", "frs")}
    tried = {f: with_steps(codec, dict.fromkeys(codec.kinds, f)) for f in FACTORS}
    for view in views:
        exact = teacher([view])
        passed = StudentPass(student(view), student.parameters(), exact)
        for factor, one in tried.items():
            (sample,), _ = one.encode(exact)
            chunks = encode_sample(one.items(), sample)
            read = one.read_sample(sample, exact.levels)
            found = passed.errors(one.decode(stack([read], [exact.levels]))).relative
            for what in codec.kinds:
                errors[what][factor].append(found[what])
            for name, rows in kb.items():
                rows[factor].append(len(chunks[name]) / 1e3)
    mean = {what: {f: float(np.nanmean(e)) for f, e in rows.items()} for what, rows in errors.items()}
    row: dict[str, Any] = {"unequal": ""}
    for what in codec.kinds:
        points = [(mean[what][f], float(np.mean(kb[f"{what}s"][f]))) for f in FACTORS]
        row |= {f"kb_{what}s": interpolate(points, target), f"err_{what}s": mean[what][1.0], f"points_{what}": points}
        known = [error for error, _ in points]
        if not min(known) / FAR <= target <= max(known) * FAR:
            row["unequal"] += what
    row["kb_map"] = float(np.mean(kb["frs"][1.0]))
    return {"kb_view": sum(row[f"kb_{name}"] for name in ("features", "scores", "map")), **row}


def cost(codec: Codec, teacher: Teacher, view: Tensor, rounds: int = 3) -> dict[str, float]:
    """Return the CPU milliseconds and multiply-adds of decoding a view."""
    exact = teacher([view])
    samples, _ = codec.encode(exact)
    batch = stack([codec.read_sample(sample, exact.levels) for sample in samples], [exact.levels])
    with FlopCounterMode(display=False) as counter:
        codec.decode(batch)
    begun = time.process_time()
    for _ in range(rounds):
        codec.decode(batch)
    spent = (time.process_time() - begun) / rounds
    macs = counter.get_total_flops() / 2
    return {"decode_ms": spent * 1e3, "decode_gmac": macs / 1e9, "kmac_position": macs / positions(exact.levels) / 1e3}


def main() -> None:
    parser = common.parser(__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    common.quiet()
    rows = common.rows_so_far(args.json)
    with tempfile.TemporaryDirectory() as folder:
        cfg, sections = found_errors.open_config(args, "balanced", Path(folder))
        job = open_job(cfg, sections, print, Silent())
        student = Student(cfg, args.student[0], job.teacher, args.adapters, lambda: draw(job, 12))
        sample = StudentSample(job.teacher, student, draw(job, args.learning + CHOOSING + REPORTED))
        dataset = cfg.val_dataloader.dataset
        views = {scale: draw(job, args.views, dataset, scale) for scale in (None, *map(tuple, args.measure_at or ()))}
        for quality in map(float, args.qualities):
            for variant in args.variants:
                begun = time.process_time()
                codec = calibrate_codec(read_options({**VARIANTS[variant], "quality": quality}), sample)
                shared = {
                    "teacher": Path(sections.teacher.checkpoint or str(sections.teacher.name)).stem,
                    "student": args.student[0].stem,
                    "variant": variant,
                    "quality": quality,
                    "learning": args.learning,
                    "calibration_s": time.process_time() - begun,
                    "command": common.machine()["command"],
                }
                for at in views.values():
                    pixels = sum(v.shape[1] * v.shape[2] for v in at) / len(at) / 1e6
                    found = measure(codec, job.teacher, student, at, quality)
                    row = {"megapixels": pixels, "views": len(at), **found, **cost(codec, job.teacher, at[0])}
                    rows.append({**shared, **row})
                    print(common.table(rows[-1:], COLUMNS), flush=True)
                common.write(args.json, rows)
    print(common.table(rows, COLUMNS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the script's arguments, among them those that `codec.open_config` reads."""
    found_errors.add_arguments(parser)
    parser.set_defaults(views=8, qualities=[0.03, 0.1])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--learning", type=int, default=96, help="views to learn from")


if __name__ == "__main__":
    main()
