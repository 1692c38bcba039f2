"""Fit the prediction of each level from the next coarser one, and the bases of what it leaves.

Levels are fitted from the coarsest on, because the input of a level is what a decoder has of the next one. A level is
fitted on a window of each view (kept.py).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.codecs.frs.transform import klt
from pipeline.codecs.frs2.inputs import MAP_INPUTS, MapInputs, inside
from pipeline.codecs.frs2.kept import KeptView, KeptViews
from pipeline.codecs.frs2.predict_levels import REDUCED, LevelMoments, Regression, neighbours, to_tables
from pipeline.codecs.frs2.transform import PredictedTransform
from pipeline.codecs.packing import widen

Tables = dict[str, np.ndarray]
TINY = torch.finfo(torch.float32).tiny


def fit_levels(transform: PredictedTransform, step: float, views: KeptViews) -> Tables:
    """Return the tables of a transform without predictions, with those of the predictions that pay.

    `feature_basis` becomes that of what they leave. step: about that of the features. views: to learn from.
    """
    tables = dict(transform.tables)
    tables["feature_basis"] = tables["feature_basis"].copy()
    levels, _, channels = tables["feature_mean"].shape
    reduce = tables["feature_basis"][1:, :, :REDUCED].transpose(0, 2, 1).astype(np.float16)
    found: list[Regression | None] = [None] * (levels - 1)
    for level in reversed(range(levels - 1)):
        moments, fitted = LevelMoments(channels), transform.with_tables(tables)
        for view in views:
            _add(moments, fitted, level, step, view, reduce[level])
        found[level] = regression = moments.fit()
        if regression is not None:
            tables["feature_basis"][level], _ = klt(regression.left)
            tables |= to_tables(found, reduce)
    return tables


def _add(
    moments: LevelMoments,
    transform: PredictedTransform,
    level: int,
    step: float,
    view: KeptView,
    reduce: np.ndarray,
) -> None:
    """Add a view to the moments of a level. The transform codes the coarser levels. reduce: P of the level, (D, C)."""
    maps, region = transform.code_maps(view.output), view.regions[level]
    decoded = transform.code_features(view.output, maps, step, level + 1).decoded[0]
    r = decoded - transform.mean("feature", level + 1, maps)
    reduced = torch.einsum("dc,bchw->bdhw", torch.from_numpy(reduce).to(r.device).float(), r) * inside(maps, level + 1)
    near = region.cut(transform.enlarge(neighbours(reduced).flatten(1, 2), level, maps))
    weight = transform.weights("feature", maps).floats[level]
    share = region.cut(weight / weight.sum(dim=(1, 2), keepdim=True).clamp_min(TINY))
    inputs = MapInputs(maps, MAP_INPUTS).levels()[level]
    taps = region.cut(F.unfold(inputs, 3, padding=1).unflatten(2, tuple(inputs.shape[-2:])))
    features = widen(view.features(level), transform.tables["feature_mean"].shape[-1])
    target = features - region.cut(transform.mean("feature", level, maps))
    moments.add(region.cut(transform.enlarge(r, level, maps)), near, taps, target, share)
