"""Learn the expected size of each group of symbols, which gives their order.

Each view, and each level of it, has the same weight, as in the loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.codecs.base import CalibrationSample
from pipeline.codecs.frs.channel_planes import most_planes
from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.map_values import inverse_root
from pipeline.codecs.frs.tables import limit_sizes
from pipeline.codecs.frs.transform import frequency_energy
from pipeline.codecs.frs2.fit_residuals import to_classes
from pipeline.codecs.frs2.kept import KeptView, KeptViews
from pipeline.codecs.frs2.residuals import choose, restore, switch
from pipeline.codecs.frs2.transform import Coded, PredictedTransform
from pipeline.codecs.frs2.windows import Windows
from pipeline.codecs.packing import widen


def learn_feature_order(transform: PredictedTransform, windows: Windows | None, views: KeptViews) -> PredictedTransform:
    """Learn the expected size of each group of the features' symbols. With windows, also cut those of the network.

    transform: with the features' step, and with the tables of the network's inputs if there are windows.
    """
    energy: Any = 0.0
    for number, view in enumerate(views):
        maps = transform.code_maps(view.output)
        features = code_kept(transform, view, maps)
        if windows:
            windows.add(number, view, maps, features.decoded, transform.tables_on(views.device))
        weights = transform.weights("feature", maps).floats
        parts = [view.regions[0].cut(weights[0]), *weights[1:]]
        sums = [w.sum(dim=(1, 2)) for w in parts]
        energy = energy + np.stack([_group_energy(c * d, s) for c, d, s in zip(features.scaled, features.steps, sums)])
    strength = np.full(len(energy), float(number + 1))
    expected = limit_sizes(to_classes(energy, strength), most_planes(transform.tables))
    return transform.with_tables({**transform.tables, "feature_expected": expected})


def code_kept(transform: PredictedTransform, view: KeptView, maps: BatchMaps) -> Coded:
    """Code the features of a kept view, those of the finest level in its region."""
    region, r, rows = view.regions[0], None, []
    if len(maps.floats) > 1:
        coarser = transform.code_features(view.output, maps, transform.feature_step, 1)
        r = coarser.decoded[0] - transform.mean("feature", 1, maps)
        rows = list(zip(*coarser))
    m = region.cut(transform.weights("feature", maps).floats[0])
    mean = region.cut(transform.mean("feature", 0, maps))
    plain = m.sqrt()[:, None] * (widen(view.features(0), mean.shape[1]) - mean)
    predicted = transform.predict_features(0, r, maps, transform.level_predictor(maps))
    prediction = None if predicted is None else region.cut(predicted)
    left, *choice = choose(plain, prediction, m)
    step = transform.step_sizes("feature", maps, transform.feature_step)[:, :1, None, None]
    scaled = transform.project("feature", 0, left) / step
    residual = transform.requantise("feature", 0, scaled, step, m)
    decoded = mean + restore(residual, inverse_root(m), switch(choice[0], prediction))
    return Coded(*map(list, zip((scaled, step, *choice, decoded), *rows)))


def learn_score_order(transform: PredictedTransform, sample: CalibrationSample) -> PredictedTransform:
    """Learn the expected size of each group of the scores' symbols, without a network."""
    energy: Any = 0.0
    views = 0
    for output in sample.outputs("learning"):
        maps = transform.code_maps(output)
        views += len(output.frs[0])
        planes, _ = transform.coefficients(output, maps, "score")
        sums = [m.sum(dim=(1, 2)) for m in maps.floats]
        energy = energy + np.stack([_group_energy(c, s) for c, s in zip(planes, sums)])
    classes = to_classes(energy, np.full(len(energy), float(views)))
    expected = limit_sizes(classes, most_planes(transform.tables))
    return transform.with_tables({**transform.tables, "score_expected": expected})


def _group_energy(coefficients: torch.Tensor, sums: torch.Tensor) -> np.ndarray:
    """Return the energy (R, 16) of coefficients (B, R, H4, W4), each sample's divided by its sum of weights (B,)."""
    energy = frequency_energy(coefficients).double() / sums.double().clamp_min(1e-30)[:, None, None]
    return energy.sum(dim=0).cpu().numpy()
