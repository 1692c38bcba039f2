"""Fitting the frs codec to a teacher: statistics, steps for the quality asked for, and the order of the symbols."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.codec.base import CalibrationSample, first_channels
from pipeline.codec.calibration import Statistics
from pipeline.codec.mapcode import map_top
from pipeline.codec.quality import QUALITIES, Steps, find_steps
from pipeline.codec.symbols import to_groups
from pipeline.codec.transform import klt, steps
from pipeline.errors import CodecError
from pipeline.records import TeacherOutput

if TYPE_CHECKING:
    from pipeline.codec.frs import Frs

KINDS = ("feature", "score")
DROPPED = 1e-4  # share of the nonzero symbols that the planes left out may hold
START = [0.0003, 0.0012, 0.005, 0.02, 0.08]  # first steps tried, in units of the residual's rms norm


def fit(codec: Frs, sample: CalibrationSample) -> None:
    """Complete the codec's settings and tables. Raises CodecError: nothing to learn from, quality out of reach."""
    quality = codec.settings["quality"]
    target = QUALITIES.get(quality, quality)
    codec.settings["map_top"] = map_top(target)
    scales = learn_statistics(codec, sample.outputs())
    set_steps(codec, find_steps(lambda tried: probe_errors(codec, sample, tried), scales, START, target))
    learn_order(codec, sample.outputs())
    codec.settings["probe_error"] = probe_errors(codec, sample, [codec.steps()], reported=True)[0]


def set_steps(codec: Frs, chosen: Steps) -> None:
    codec.settings.update({f"{what}_step": step for what, step in chosen.items()})


def learn_statistics(codec: Frs, outputs: Iterable[TeacherOutput]) -> Steps:
    """Means, and bases of full rank. Returns the rms norm of both residuals, the natural unit of their steps."""
    statistics: Statistics | None = None
    for output in outputs:
        if statistics is None:
            codec.settings.update(first_channels(output))
            codec.channels, codec.score_channels = output.features[0].shape[1], output.scores[0].shape[1]
            statistics = Statistics(len(output.features), codec.channels, codec.score_channels)
        codec.check(output)
        maps = codec.code(output)
        statistics.add(output, maps.floats, maps.buckets)
    if statistics is None:
        raise CodecError("calibration: no view of the sample could be read")
    feature_mean, feature_covs, score_mean, score_cov = statistics.result()
    solved = [klt(cov) for cov in feature_covs]
    basis, values = klt(score_cov)
    codec.use({
        "feature_mean": feature_mean, "feature_basis": np.stack([vectors for vectors, _ in solved]),
        "score_mean": score_mean, "score_basis": basis,
    })  # fmt: skip
    traces = {"feature": np.mean([v.sum() for _, v in solved]), "score": values.sum() / len(solved)}
    return {what: float(trace / statistics.views) ** 0.5 or 1.0 for what, trace in traces.items()}


def probe_errors(codec: Frs, sample: CalibrationSample, tried: list[Steps], reported: bool = False) -> list[Steps]:
    """Mean gradient errors {'feature', 'score'} on the probe for every pair of steps."""
    sums = [dict.fromkeys(KINDS, 0.0) for _ in tried]
    count = 0
    for output, measure in sample.probes(reported):
        count += 1
        maps = codec.code(output)
        exact = codec.coefficients(output, maps)
        for row, chosen in zip(sums, tried):
            for what, error in measure(codec.rounded(exact, maps, chosen)).items():
                row[what] += error
    if not count:
        raise CodecError("calibration: no view to probe; raise cache.calibration_views")
    return [{what: total / count for what, total in row.items()} for row in sums]


def learn_order(codec: Frs, outputs: Iterable[TeacherOutput]) -> None:
    """Expected size of every group of symbols; planes without nonzero symbols are dropped."""
    energy: dict[str, Any] = dict.fromkeys(KINDS, 0.0)
    nonzero: dict[str, Any] = dict.fromkeys(KINDS, 0.0)
    strength: Any = 0.0
    for output in outputs:
        maps = codec.code(output)
        strength = strength + sum(np.array([float(w.sum()) for w in s.whole()]) for s in maps.samples)
        for what, levels in codec.coefficients(output, maps).items():
            by_level: list[np.ndarray] = []
            count: Any = 0.0
            for i, (level, step) in enumerate(zip(levels, steps(maps.floats, codec.steps()[what]))):
                # Relative to the level's exponent, as the whole numbers are that stand for the map.
                octaves = [2.0 ** min(s.exponents[i], 120) for s in maps.samples]
                sizes = [to_groups(c).square().sum(dim=2).double() * o for c, o in zip(level, octaves)]
                by_level.append(torch.stack(sizes).sum(dim=0).cpu().numpy())
                count = count + (level.abs() > step / 2).sum(dim=(0, 2, 3)).double().cpu().numpy()
            energy[what], nonzero[what] = energy[what] + np.stack(by_level), nonzero[what] + count
    tables = dict(codec.tables)
    for what in KINDS:
        total = np.cumsum(nonzero[what])
        rank = int(np.searchsorted(total, total[-1] * (1 - DROPPED))) + 1
        size = energy[what][:, :rank] / np.maximum(strength, 1.0)[:, None, None]
        expected = np.round(2 * np.log2(np.maximum(size, 1e-12 * max(size.max(), 1e-30))))
        tables[f"{what}_expected"] = expected.astype(np.int16)
        tables[f"{what}_basis"] = tables[f"{what}_basis"][..., :rank].copy()
        codec.settings[f"{what}_rank"] = rank
    codec.use(tables)
