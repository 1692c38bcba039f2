"""Fitting the frs codec to a teacher: statistics, steps for the quality asked for, and the order of the symbols."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.codecs.base import CalibrationSample, Measure
from pipeline.codecs.frs.map import DEEPEST, map_top
from pipeline.codecs.frs.settings import PROFILES, asked
from pipeline.codecs.frs.statistics import Statistics
from pipeline.codecs.frs.step_search import find_step
from pipeline.codecs.frs.tokens import to_groups
from pipeline.codecs.frs.transform import klt
from pipeline.errors import CodecError
from pipeline.losses.registry import FEATURE_LOSSES
from pipeline.records import TeacherOutput

if TYPE_CHECKING:
    from pipeline.codecs.frs.codec import Frs


DROPPED = 5e-3  # share of a level's nonzero symbols that the planes left out may hold
START = [0.003, 0.03, 0.3]  # first steps tried, in units of the residual's rms norm


def fit(codec: Frs, sample: CalibrationSample) -> None:
    """Complete the codec's settings and tables. Raises CodecError: nothing to learn from, quality out of reach."""
    target = asked(codec.settings["quality"])
    codec.settings["map_top"] = map_top(target)
    scales = learn_statistics(codec, sample.outputs("learning"))
    for what in codec.kinds:
        losses = PROFILES[codec.settings["profile"]] if what == "feature" else ("score",)
        errors = lambda tried: worst(probe_errors(codec, what, sample.probes("choosing", losses), tried))  # noqa: B023, E731
        codec.settings[f"{what}_step"] = find_step(what, errors, [factor * scales[what] for factor in START], target)
    learn_order(codec, sample.outputs("learning"))
    drop_planes(codec, sample.outputs("choosing"))
    codec.settings["probe_error"] = {}
    for what in codec.kinds:
        losses = tuple(FEATURE_LOSSES.values()) if what == "feature" else ("score",)
        (found,) = probe_errors(codec, what, sample.probes("reported", losses), [codec.steps()[what]])
        codec.settings["probe_error"] |= found


def learn_statistics(codec: Frs, outputs: Iterable[TeacherOutput]) -> dict[str, float]:
    """Means, and bases of full rank. Returns the rms norm of both residuals, the natural unit of their steps."""
    statistics: Statistics | None = None
    for output in outputs:
        if statistics is None:
            codec.learn_channels(output)
            statistics = Statistics(len(output.features), codec.channels, codec.score_channels)
        codec.check(output)
        maps = codec.code(output)
        statistics.add(output, codec.weights("feature", maps).floats, maps.floats, maps.buckets)
    if statistics is None:
        raise CodecError("calibration: no view of the sample could be read")
    means, covs = statistics.features()
    solved = [klt(cov) for cov in covs]
    tables = {"feature_mean": means, "feature_basis": np.stack([vectors for vectors, _ in solved])}
    traces = {"feature": np.mean([values.sum() for _, values in solved])}
    if "score" in codec.kinds:
        tables["score_mean"], cov = statistics.roots()
        tables["score_basis"], values = klt(cov)
        traces["score"] = values.sum() / len(solved)
    codec.use(tables)
    return {what: float(trace / statistics.views) ** 0.5 or 1.0 for what, trace in traces.items()}


def probe_errors(
    codec: Frs, what: str, probes: Iterable[tuple[TeacherOutput, Measure]], tried: list[float]
) -> list[dict[str, float]]:
    """Of each of several steps the mean gradient error of every loss; 0 where no view has a gradient."""
    found: list[dict[str, list[float]]] = [{} for _ in tried]
    for output, measure in probes:
        maps = codec.code(output)
        exact, _ = codec.coefficients(output, maps, what)
        for errors, step in zip(found, tried):
            coded: dict[str, Any] = {"frs": maps.floats, f"{what}s": codec.rounded(exact, maps, what, step)}
            for loss, error in measure(replace(output, **coded)).items():
                errors.setdefault(loss, []).extend([] if math.isnan(error) else [error])
        del output, measure, maps, exact, coded  # or this view's graph would stay while the next is made
    return [{loss: sum(e) / max(1, len(e)) for loss, e in errors.items() if loss != "total"} for errors in found]


def worst(errors: list[dict[str, float]]) -> list[float]:
    """Of each step the error of the loss that it harms most."""
    return [max(row.values(), default=0.0) for row in errors]


def learn_order(codec: Frs, outputs: Iterable[TeacherOutput]) -> None:
    """Expected size of every group of symbols."""
    energy: dict[str, Any] = dict.fromkeys(codec.kinds, 0.0)
    strength: dict[str, Any] = dict.fromkeys(codec.kinds, 0.0)
    for output in outputs:
        maps = codec.code(output)
        for what in codec.kinds:
            samples = codec.weights(what, maps).samples
            strength[what] = strength[what] + sum(np.array([float(w.sum()) for w in s.whole()]) for s in samples)
            levels, _ = codec.coefficients(output, maps, what)
            by_level: list[np.ndarray] = []
            octaves = [2.0 ** s.exponents.double().clamp_max(DEEPEST) for s in samples]
            for i, level in enumerate(levels):
                # Relative to the level's exponent, as the whole numbers are that stand for the map.
                sizes = [to_groups(c).square().sum(dim=2).double() * o[i] for c, o in zip(level, octaves)]
                by_level.append(torch.stack(sizes).sum(dim=0).cpu().numpy())
            energy[what] = energy[what] + np.stack(by_level)
        del output, maps, levels, level
    tables = dict(codec.tables)
    for what in codec.kinds:
        size = energy[what] / np.maximum(strength[what], 1.0)[:, None, None]
        expected = np.round(2 * np.log2(np.maximum(size, 1e-12 * max(size.max(), 1e-30))))
        tables[f"{what}_expected"] = expected.astype(np.int16)
    codec.use(tables)


def drop_planes(codec: Frs, outputs: Iterable[TeacherOutput]) -> None:
    """Leave out the last planes where they are all but empty: on every level, on views unknown to the bases."""
    nonzero: dict[str, Any] = dict.fromkeys(codec.kinds, 0.0)
    for output in outputs:
        maps = codec.code(output)
        for what in codec.kinds:
            levels, _ = codec.coefficients(output, maps, what)
            counts = [
                (level.abs() > step / 2).sum(dim=(0, 2, 3)).cpu().numpy()
                for level, step in zip(levels, codec.step_sizes(what, maps))
            ]
            nonzero[what] = nonzero[what] + np.stack(counts)
    tables = dict(codec.tables)
    for what in codec.kinds:
        counts = nonzero[what] + np.zeros((1, tables[f"{what}_basis"].shape[-1]))
        total = np.cumsum(counts, axis=1)
        kept = (total < total[:, -1:] * (1 - DROPPED)).sum(axis=1) + 1
        rank = int(min(kept.max(), counts.shape[1]))
        tables[f"{what}_expected"] = tables[f"{what}_expected"][:, :rank].copy()
        tables[f"{what}_basis"] = tables[f"{what}_basis"][..., :rank].copy()
        codec.settings[f"{what}_rank"] = rank
    codec.use(tables)
