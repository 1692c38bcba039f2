"""Fit the prediction of each level from the next coarser one, and the bases of what it leaves.

Levels are fitted from the coarsest on, because the input of a level is what a decoder has of the next one. The features
of all levels but the finest are kept in memory as float16; the finest level, which has most of the positions, is
computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from pipeline.codecs.frs.transform import klt
from pipeline.codecs.frs2.inputs import inside, map_inputs
from pipeline.codecs.frs2.predict_levels import REDUCED, LevelMoments, Regression, neighbours, to_tables
from pipeline.codecs.frs2.transform import PredictedTransform
from pipeline.codecs.packing import widen
from pipeline.records import TeacherOutput

Tables = dict[str, np.ndarray]
TINY = torch.finfo(torch.float32).tiny


class CoarseViews:
    """The views of an iteration without their finest level and scores, kept on the host as float16."""

    def __init__(self) -> None:
        self._rows: list[TeacherOutput] = []
        self._device = torch.device("cpu")

    def watch(self, outputs: Iterable[TeacherOutput]) -> Iterator[TeacherOutput]:
        """Yield the outputs, and keep a copy."""
        for output in outputs:
            self._device = output.frs[0].device
            batch, _, *finest = output.features[0].shape
            features = [output.features[0].new_empty((batch, 0, *finest)), *(f.half() for f in output.features[1:])]
            self._rows.append(TeacherOutput(features, [], output.frs).to("cpu"))
            yield output

    def __iter__(self) -> Iterator[TeacherOutput]:
        return (row.to(self._device) for row in self._rows)


def fit_levels(
    transform: PredictedTransform, step: float, coarse: CoarseViews, outputs: Iterable[TeacherOutput]
) -> Tables:
    """Return the tables of a transform without predictions, with those of the predictions that pay.

    `feature_basis` becomes that of what they leave. step: about that of the features. coarse: the views to learn from.
    outputs: the same views with all levels.
    """
    tables = dict(transform.tables)
    tables["feature_basis"] = tables["feature_basis"].copy()
    levels, _, channels = tables["feature_mean"].shape
    reduce = tables["feature_basis"][1:, :, :REDUCED].transpose(0, 2, 1).astype(np.float16)
    found: list[Regression | None] = [None] * (levels - 1)
    for level in reversed(range(levels - 1)):
        moments = LevelMoments(channels)
        for output in coarse if level else outputs:
            _add(moments, transform.with_tables(tables), level, step, output, reduce[level])
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
    output: TeacherOutput,
    reduce: np.ndarray,
) -> None:
    """Add a view to the moments of a level. The transform codes the coarser levels. reduce: P of the level, (D, C)."""
    maps = transform.code_maps(output)
    decoded = transform.code_features(output, maps, step, level + 1).decoded[0]
    r = decoded - transform.mean("feature", level + 1, maps)
    reduced = torch.einsum("dc,bchw->bdhw", torch.from_numpy(reduce).to(r.device).float(), r) * inside(maps, level + 1)
    near = transform.enlarge(neighbours(reduced).flatten(1, 2), level, maps)
    weight = transform.weights("feature", maps).floats[level]
    share = weight / weight.sum(dim=(1, 2), keepdim=True).clamp_min(TINY)
    features = widen(output.features[level].float(), transform.tables["feature_mean"].shape[-1])
    target = features - transform.mean("feature", level, maps)
    moments.add(transform.enlarge(r, level, maps), near, map_inputs(maps, level), target, share)
