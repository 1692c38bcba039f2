"""Bytes of a frs or frs2 codec at a given gradient error of a trained student, with zstd and with the entropy coder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.student_sample import StudentSample
from pipeline.cache.items import Item, encode_item
from pipeline.calibration.gradient import StudentPass
from pipeline.codecs.base import Codec
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs2.ans_fit import fit as fit_ans
from pipeline.codecs.frs2.ans_stream import encode as ans_encode
from pipeline.codecs.frs2.classes import Histogram, class_sizes, group_histograms, key_histogram
from pipeline.codecs.frs2.codec import Coder, Frs2
from pipeline.codecs.frs2.transform import PredictedTransform
from pipeline.codecs.packing import Sample, stack
from pipeline.records import LevelShapes, TeacherOutput

FACTORS = (0.75, 1.0)  # of the calibrated step
FAR = 1.5


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


class Measured:
    """A codec with bytes and errors of views, by factor of its steps."""

    def __init__(self, codec: Codec, sample: StudentSample) -> None:
        assert isinstance(codec, Frs)
        self.codec, self.tried = codec, {f: with_steps(codec, dict.fromkeys(codec.kinds, f)) for f in FACTORS}
        self._coders = codec.coders if isinstance(codec, Frs2) else fit_to(codec, sample)
        self.errors: dict[str, dict[float, list[float]]] = {what: {f: [] for f in FACTORS} for what in codec.kinds}
        self._kb: dict[tuple[str, str], dict[float, list[float]]] = {}

    def add(self, exact: TeacherOutput, passed: StudentPass) -> None:
        """Measure a view."""
        for factor, one in self.tried.items():
            (sample,), _ = one.encode(exact)
            read = one.read_sample(sample, exact.levels) if isinstance(one, Frs2) else sample
            found = passed.errors(one.decode(stack([read], [exact.levels]))).relative
            strengths = strengths_of(one, sample, exact.levels)
            for what in one.kinds:
                self.errors[what][factor].append(found[what])
                tokens = read[f"{what}s"]
                item = Item(f"{what}s", "int32", one.options.zstd_level, ("token",))
                coder = self._coders[what]
                sizes = class_sizes(key_histogram(coder.groups, strengths[what]), coder.model.top)
                self._add("zstd", what, factor, len(encode_item(item, tokens)))
                self._add("ans", what, factor, len(ans_encode(tokens, sizes, coder.model)))
            item = next(item for item in one.items() if item.name == "frs")
            self._add("both", "map", factor, len(encode_item(item, sample["frs"])))

    def _add(self, coder: str, name: str, factor: float, size: int) -> None:
        self._kb.setdefault((coder, name), {f: [] for f in FACTORS})[factor].append(size / 1e3)

    def row(self, coder: str, target: float, pixels: float) -> dict[str, Any]:
        """Return bytes of each array at the target error, and the errors found at the calibrated steps."""
        row: dict[str, Any] = {"coder": coder, "unequal": ""}
        stated = self.codec.settings["probe_error"]
        for what in self.codec.kinds:
            mean = {f: float(np.nanmean(e)) for f, e in self.errors[what].items()}
            points = [(mean[f], float(np.mean(self._kb[coder, what][f]))) for f in FACTORS]
            equal = min(points)[0] / FAR <= target <= max(points)[0] * FAR
            kb = interpolate(points, target) if equal else points[-1][1]
            row |= {f"kb_{what}s": kb, f"err_{what}s": mean[1.0], f"points_{what}": points}
            row |= {f"stated_{what}s": stated[what], f"kb_{what}s_as_calibrated": points[-1][1]}
            row["unequal"] += "" if equal else what
        row["kb_map"] = float(np.mean(self._kb["both", "map"][1.0]))
        row["kb_view"] = sum(row[f"kb_{name}"] for name in ("features", "scores", "map"))
        return {**row, "kb_megapixel": row["kb_view"] / pixels}


def fit_to(codec: Frs, sample: StudentSample) -> dict[str, Coder]:
    """Return entropy coders for a codec that has none, fitted to the views that choose the steps."""
    groups = {what: group_histograms(codec.tables[f"{what}_expected"]) for what in codec.kinds}
    coded: dict[str, list[tuple[np.ndarray, Histogram]]] = {what: [] for what in codec.kinds}
    for output in sample.outputs("choosing"):
        (encoded,), _ = codec.encode(output)
        strengths = strengths_of(codec, encoded, output.levels)
        for what in codec.kinds:
            coded[what].append((encoded[f"{what}s"], key_histogram(groups[what], strengths[what])))
    return {what: Coder(fit_ans(rows), groups[what]) for what, rows in coded.items()}


def strengths_of(codec: Frs, sample: Sample, levels: LevelShapes) -> dict[str, list[np.ndarray]]:
    """Return of each tensor the strengths of the blocks of a view."""
    row = sample["frs"][len(levels) :] if isinstance(codec, Frs2) else sample["frs"]
    return PredictedTransform(codec.calibration.map_top, codec.options.profile, {}).strengths(row, levels)
