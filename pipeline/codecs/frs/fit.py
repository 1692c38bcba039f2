"""Fit the frs codec to a teacher: statistics, steps for the requested quality, and the order of the symbols.

Every function returns its result, and `fit` combines them. Each function computes the views again, so only one batch
is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.codecs.base import CalibrationSample, channels_of, check_output, level_channels_of
from pipeline.codecs.frs.boxes import fit_boxes
from pipeline.codecs.frs.channel_planes import most_planes
from pipeline.codecs.frs.map_codes import DEEPEST, map_top
from pipeline.codecs.frs.settings import FrsCalibration, FrsOptions
from pipeline.codecs.frs.stated import choose_step, state_errors
from pipeline.codecs.frs.statistics import Statistics
from pipeline.codecs.frs.tables import limit_sizes
from pipeline.codecs.frs.transform import frequency_energy, klt
from pipeline.codecs.frs.weighted import WeightedTransform
from pipeline.errors import CodecError
from pipeline.records import TeacherOutput

Tables = dict[str, np.ndarray]


class Learned(NamedTuple):
    """channels (C, K), tables with means and bases of full rank, and the rms norm of each residual as `scales`.

    widths: channels of every level, None if they are equal.
    """

    channels: tuple[int, int]
    tables: Tables
    scales: dict[str, float]
    widths: list[int] | None = None


def fit(options: FrsOptions, sample: CalibrationSample) -> tuple[FrsCalibration, Tables]:
    """Calibrate on a sample of views. Raise CodecError where no view can be read or the quality cannot be reached."""
    kinds, top = options.kinds, map_top(options.allowed_error)
    transform = WeightedTransform(top, options.profile, {})
    learned = learn_statistics(transform, kinds, sample.outputs("learning"))
    transform = WeightedTransform(top, options.profile, learned.tables, learned.widths)
    steps = {what: choose_step(transform, what, options, learned.scales[what], sample) for what in kinds}
    tables = learned.tables | learn_order(transform, kinds, sample.outputs("learning"))
    transform = transform.with_tables(tables)
    return calibration_of(transform, options, learned, steps, sample), tables


def calibration_of(
    transform: WeightedTransform,
    options: FrsOptions,
    learned: Learned,
    steps: dict[str, float],
    sample: CalibrationSample,
) -> FrsCalibration:
    """Return the settings of a fitted transform with these steps, and measure the errors that they state."""
    # With planes of single channels there are more planes than channels, and they span all of them.
    planes = {what: transform.tables[f"{what}_expected"].shape[1] for what in steps}
    ranks = {what: min(planes[what], width) for what, width in zip(steps, learned.channels)}
    return FrsCalibration(
        map_top=transform.map_top,
        channels=learned.channels[0],
        score_channels=learned.channels[1],
        feature_step=steps["feature"],
        score_step=steps.get("score"),
        feature_rank=ranks["feature"],
        score_rank=ranks.get("score"),
        level_channels=learned.widths,
        **state_errors(transform, steps, options, sample)._asdict(),
        **fit_boxes(options, transform.map_top, sample),
    )


def learn_statistics(transform: WeightedTransform, kinds: Sequence[str], outputs: Iterable[TeacherOutput]) -> Learned:
    """Learn the means given (level, bucket of the map), and a basis of full rank for features and scores."""
    statistics: Statistics | None = None
    for output in outputs:
        if statistics is None:
            channels, widths = channels_of(output, kinds), level_channels_of(output)
            statistics = Statistics(len(output.features), *channels)
        check_output(output, channels, widths)
        maps = transform.code_maps(output)
        statistics.add(output, transform.weights("feature", maps).floats, maps.floats, maps.buckets)
    if statistics is None:
        raise CodecError("calibration: no view of the sample could be read; check the images of the data set")
    means, covs = statistics.features()
    solved = [_padded_klt(cov, width) for cov, width in zip(covs, widths or [channels[0]] * len(covs))]
    tables = {"feature_mean": means, "feature_basis": np.stack([vectors for vectors, _ in solved])}
    traces = {"feature": np.mean([values.sum() for _, values in solved])}
    if "score" in kinds:
        tables["score_mean"], tables["score_basis"], energy = statistics.roots()
        traces["score"] = energy / len(solved)
    scales = {what: float(trace / statistics.views) ** 0.5 or 1.0 for what, trace in traces.items()}
    return Learned(channels, tables, scales, widths)


def _padded_klt(cov: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (vectors, values) of the first `width` channels, the others of which are 0. Vectors are (C, C)."""
    vectors, values = klt(cov[:width, :width])
    missing = len(cov) - width
    return np.pad(vectors, (0, missing)) if missing else vectors, values


def learn_order(transform: WeightedTransform, kinds: Sequence[str], outputs: Iterable[TeacherOutput]) -> Tables:
    """Learn the expected size of every group of symbols, `{what}_expected` (L, R, 16) int16."""
    energy: dict[str, Any] = dict.fromkeys(kinds, 0.0)
    strength: dict[str, Any] = dict.fromkeys(kinds, 0.0)
    for output in outputs:
        maps = transform.code_maps(output)
        for what in kinds:
            weights = transform.weights(what, maps)
            strength[what] = strength[what] + weights.level_sums.double().sum(dim=0).cpu().numpy()
            levels, _ = transform.coefficients(output, maps, what)
            # Relative to the level's exponent, like the map's integers.
            octaves = 2.0 ** weights.exponents.double().clamp_max(DEEPEST)
            sizes = [frequency_energy(c).double() * octaves[:, n, None, None] for n, c in enumerate(levels)]
            energy[what] = energy[what] + torch.stack([size.sum(dim=0) for size in sizes]).cpu().numpy()
        del output, maps, levels
    tables = {}
    for what in kinds:
        size = energy[what] / np.maximum(strength[what], 1.0)[:, None, None]
        expected = np.round(2 * np.log2(np.maximum(size, 1e-12 * max(size.max(), 1e-30))))
        tables[f"{what}_expected"] = limit_sizes(expected.astype(np.int16), most_planes(transform.tables))
    return tables
