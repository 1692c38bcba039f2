"""Fit the frs2 codec to a teacher: statistics, predictions, steps for the requested quality, order of the symbols.

The views to learn from are computed three times: for the statistics, for the prediction of the finest level, and for
the network's windows together with the expected sizes of the symbols. The network trains for a fixed number of steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from pipeline.codecs.base import CalibrationSample, Measure
from pipeline.codecs.frs.fit import DROPPED, Learned, calibration_of, learn_statistics
from pipeline.codecs.frs.map import map_top
from pipeline.codecs.frs.settings import FrsCalibration
from pipeline.codecs.frs.stated import choose_step
from pipeline.codecs.frs.tokens import to_tokens
from pipeline.codecs.frs.transform import frequency_energy
from pipeline.codecs.frs2.ans_fit import fit as fit_ans
from pipeline.codecs.frs2.classes import Histogram, group_histograms, key_histogram
from pipeline.codecs.frs2.fit_levels import CoarseViews, fit_levels
from pipeline.codecs.frs2.fit_residuals import learn_residuals, to_classes
from pipeline.codecs.frs2.fit_scores import InputMoments, train_network
from pipeline.codecs.frs2.settings import Frs2Options
from pipeline.codecs.frs2.transform import PredictedTransform
from pipeline.codecs.frs2.windows import Windows
from pipeline.records import TeacherOutput

LOCATING = 8  # views that find the step at which the levels' predictions are fitted; it need not be exact
CENTRE = 0.03  # the middle of the steps that `choose_step` tries, in units of its scale

Tables = dict[str, np.ndarray]


class FewViews:
    """A sample of which the probes measure only the first views."""

    def __init__(self, sample: CalibrationSample) -> None:
        self._sample = sample
        self.outputs, self.unexplained, self.training = sample.outputs, sample.unexplained, sample.training

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        return islice(self._sample.probes(part, losses, near), LOCATING)


def fit(options: Frs2Options, sample: CalibrationSample) -> tuple[FrsCalibration, Tables]:
    """Calibrate on a sample of views. Raise CodecError where no view can be read or the quality cannot be reached."""
    top = map_top(options.allowed_error)
    transform = PredictedTransform(top, options.profile, {})
    coarse, moments = CoarseViews(), InputMoments()
    networked = options.predict_scores and options.scores
    outputs: Iterable[TeacherOutput] = sample.outputs("learning")
    outputs = coarse.watch(outputs) if options.predict_levels else outputs
    outputs = moments.watch(outputs) if networked else outputs
    learned = learn_statistics(transform, options.kinds, outputs)
    transform = PredictedTransform(top, options.profile, learned.tables, widths=learned.widths)
    transform, step = fit_features(transform, options, learned, coarse, sample)
    del coarse
    steps = {"feature": step}
    transform = transform.with_tables(transform.tables, step)
    windows = Windows(len(learned.tables["feature_mean"])) if networked else None
    inputs = moments.tables() if windows else {}
    kinds = ("feature",) if windows else options.kinds
    transform = learn_order(transform.with_tables({**transform.tables, **inputs}), kinds, windows, sample)
    if windows:
        transform = fit_network(transform, options, learned, windows, moments.device, sample)
    if options.scores:
        steps["score"] = choose_step(transform, "score", options, learned.scales["score"], sample)
        transform = drop_planes(transform, "score", steps["score"], sample)
    calibration = calibration_of(transform, options, learned, steps, sample)
    return calibration, {**transform.tables, **fit_coders(transform, steps, sample)}


def fit_coders(transform: PredictedTransform, steps: dict[str, float], sample: CalibrationSample) -> Tables:
    """Return the tables of the entropy coders, fitted to the choosing views."""
    coded: dict[str, list[tuple[np.ndarray, Histogram]]] = {what: [] for what in steps}
    groups = {what: group_histograms(transform.tables[f"{what}_expected"]) for what in steps}
    for output in sample.outputs("choosing"):
        maps = transform.code_maps(output)
        for what, step in steps.items():
            rounded = [c.round() for c in transform.code(output, maps, what, step).scaled]
            strengths = transform.weights(what, maps).own_strength
            for n, tokens in enumerate(to_tokens(rounded, transform.symbol_order(what, maps))):
                coded[what].append((tokens.cpu().numpy(), key_histogram(groups[what], strengths(n))))
    return {name: table for what, rows in coded.items() for name, table in fit_ans(rows).to_tables(what).items()}


def fit_features(
    transform: PredictedTransform,
    options: Frs2Options,
    learned: Learned,
    coarse: CoarseViews,
    sample: CalibrationSample,
) -> tuple[PredictedTransform, float]:
    """Fit the predictions of the levels, and choose the step of the features. Return the transform and the step."""
    scale = learned.scales["feature"]
    if options.predict_levels and len(transform.tables["feature_mean"]) > 1:
        near = choose_step(transform, "feature", options, scale, FewViews(sample))
        tables = fit_levels(transform, near, coarse, sample.outputs("learning"))
        transform, scale = transform.with_tables(tables), near / CENTRE
    step = choose_step(transform, "feature", options, scale, sample)
    return drop_planes(transform, "feature", step, sample), step


def fit_network(
    transform: PredictedTransform,
    options: Frs2Options,
    learned: Learned,
    windows: Windows,
    device: torch.device,
    sample: CalibrationSample,
) -> PredictedTransform:
    """Train the network, and learn the scores' basis and order. Where it does not pay, remove its tables."""
    tables, found = dict(transform.tables), None
    if windows.held[0]:  # without, nothing could say whether it pays
        trained = tables | train_network(windows, *learned.channels, device, sample.training)
        found = learn_residuals(transform.with_tables(trained), windows, device, options.allowed_error)
    if found is None:
        without = {name: table for name, table in tables.items() if not name.startswith("net_")}
        return learn_order(transform.with_tables(without), ("score",), None, sample)
    return transform.with_tables(trained | found)


def learn_order(
    transform: PredictedTransform, kinds: Sequence[str], windows: Windows | None, sample: CalibrationSample
) -> PredictedTransform:
    """Learn the expected size of each group of symbols, without a network. With windows, also cut them to train one.

    transform: with the features' step, and with the tables of the network's inputs if there are windows.
    """
    energy: dict[str, Any] = dict.fromkeys(kinds, 0.0)
    views = 0
    for output in sample.outputs("learning"):
        maps = transform.code_maps(output)
        views += len(output.frs[0])
        features = transform.code_features(output, maps, transform.feature_step)
        if windows:
            windows.add(output, maps, features.decoded, transform.tables_on(output.frs[0].device))
        for what in kinds:
            found = features if what == "feature" else transform.code(output, maps, what, 1.0)
            sums = [w.sum(dim=(1, 2)) for w in transform.weights(what, maps).floats]
            parts = zip(found.scaled, found.steps, sums)
            energy[what] = energy[what] + np.stack([_group_energy(c * d, total) for c, d, total in parts])
    strength = np.full(len(transform.tables["feature_mean"]), float(views))
    return transform.with_tables(
        {**transform.tables, **{f"{what}_expected": to_classes(found, strength) for what, found in energy.items()}}
    )


def _group_energy(coefficients: torch.Tensor, sums: torch.Tensor) -> np.ndarray:
    """Return the energy (R, 16) of coefficients (B, R, H4, W4), each sample's divided by its sum of weights (B,)."""
    energy = frequency_energy(coefficients).double() / sums.double().clamp_min(1e-30)[:, None, None]
    return energy.sum(dim=0).cpu().numpy()


def drop_planes(transform: PredictedTransform, what: str, step: float, sample: CalibrationSample) -> PredictedTransform:
    """Return the transform without the last planes, if these are nearly empty on every level of the choosing views."""
    counts: Any = 0.0
    for output in sample.outputs("choosing"):
        coded = transform.code(output, transform.code_maps(output), what, step)
        counts = counts + np.stack([(c.abs() > 0.5).sum(dim=(0, 2, 3)).cpu().numpy() for c in coded.scaled])
    total = np.cumsum(counts, axis=1)
    kept = (total < total[:, -1:] * (1 - DROPPED)).sum(axis=1) + 1
    rank = int(min(kept.max(), total.shape[1]))
    tables = dict(transform.tables)
    tables[f"{what}_basis"] = tables[f"{what}_basis"][..., :rank].copy()
    if f"{what}_expected" in tables:
        tables[f"{what}_expected"] = tables[f"{what}_expected"][:, :rank].copy()
    return transform.with_tables(tables)
