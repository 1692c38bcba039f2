"""Fit the frs2 codec to a teacher: statistics, predictions, steps for the requested quality, order of the symbols.

The teacher computes the views to learn from once: for the statistics. The predictions and the order of the symbols are
learnt from what is kept of these views (kept.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from pipeline.codecs.base import CalibrationSample
from pipeline.codecs.frs.fit import Learned, calibration_of, learn_statistics
from pipeline.codecs.frs.map_codes import map_top
from pipeline.codecs.frs.settings import FrsCalibration
from pipeline.codecs.frs.sketch import WIDE
from pipeline.codecs.frs.stated import choose_step, locate
from pipeline.codecs.frs.tokens import to_tokens
from pipeline.codecs.frs2.ans_fit import fit as fit_ans
from pipeline.codecs.frs2.classes import Histogram, group_histograms, key_histogram
from pipeline.codecs.frs2.fit_levels import fit_levels
from pipeline.codecs.frs2.fit_order import learn_feature_order, learn_score_order
from pipeline.codecs.frs2.fit_residuals import learn_residuals
from pipeline.codecs.frs2.fit_scores import InputMoments, train_network
from pipeline.codecs.frs2.kept import KeptViews
from pipeline.codecs.frs2.settings import Frs2Options
from pipeline.codecs.frs2.transform import PredictedTransform
from pipeline.codecs.frs2.windows import Windows
from pipeline.records import TeacherOutput

Tables = dict[str, np.ndarray]


def fit(options: Frs2Options, sample: CalibrationSample) -> tuple[FrsCalibration, Tables]:
    """Calibrate on a sample of views. Raise CodecError where no view can be read or the quality cannot be reached."""
    top = map_top(options.allowed_error)
    transform = PredictedTransform(top, options.profile, {})
    networked = options.predict_scores and options.scores
    views, moments = KeptViews(transform.code_maps, networked), InputMoments()
    outputs: Iterable[TeacherOutput] = views.watch(sample.outputs("learning"))
    learned = learn_statistics(transform, options.kinds, moments.watch(outputs) if networked else outputs)
    networked = networked and learned.channels[1] <= WIDE  # its windows and its output would take several GB
    transform = PredictedTransform(top, options.profile, learned.tables, widths=learned.widths)
    transform, step = fit_features(transform, options, learned, views, sample)
    steps = {"feature": step}
    inputs = moments.tables() if networked else {}
    transform = transform.with_tables({**transform.tables, **inputs}, step)
    windows = Windows(len(learned.tables["feature_mean"])) if networked else None
    transform = learn_feature_order(transform, windows, views)
    if windows:
        transform = fit_network(transform, options, learned, windows, views.device, sample)
    del views, windows
    if options.scores:
        if "score_expected" not in transform.tables:
            transform = learn_score_order(transform, sample)
        steps["score"] = choose_step(transform, "score", options, learned.scales["score"], sample)
    calibration = calibration_of(transform, options, learned, steps, sample)
    return calibration, {**transform.tables, **fit_coders(transform, steps, sample)}


def fit_coders(transform: PredictedTransform, steps: dict[str, float], sample: CalibrationSample) -> Tables:
    """Return the tables of the entropy coders, fitted to the choosing views."""
    coded: dict[str, list[tuple[np.ndarray, Histogram]]] = {what: [] for what in steps}
    groups = {what: group_histograms(transform.tables[f"{what}_expected"]) for what in steps}
    for output in sample.outputs("choosing"):
        maps = transform.code_maps(output)
        rows = maps.to_bytes().cpu().numpy()
        for what, step in steps.items():
            rounded = [c.round() for c in transform.code(output, maps, what, step).scaled]
            for row, tokens in zip(rows, to_tokens(rounded, transform.symbol_order(what, maps))):
                strengths = transform.strengths(row, output.levels)[what]
                coded[what].append((tokens.cpu().numpy(), key_histogram(groups[what], strengths)))
    return {name: table for what, rows in coded.items() for name, table in fit_ans(rows).to_tables(what).items()}


def fit_features(
    transform: PredictedTransform, options: Frs2Options, learned: Learned, views: KeptViews, sample: CalibrationSample
) -> tuple[PredictedTransform, float]:
    """Fit the predictions of the levels, and choose the step of the features. Return the transform and the step."""
    scale, located = learned.scales["feature"], None
    if options.predict_levels and len(transform.tables["feature_mean"]) > 1:
        located = locate(transform, "feature", options, scale, sample)
        close = located.step if located else choose_step(transform, "feature", options, scale, sample)
        transform = transform.with_tables(fit_levels(transform, close, views))
    step = choose_step(transform, "feature", options, scale, sample, located)
    return transform, step


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
        return transform.with_tables({name: t for name, t in tables.items() if not name.startswith("net_")})
    return transform.with_tables(trained | found)
