"""Rebuild the tensors of a batch from what is stored of them and from the predictions.

Tensors are packed as on the canvas, channels last, so that all operations meet memory in one order. The scores are a
decoder's largest tensors, and new memory costs a CPU more than the arithmetic, so finished tensors are overwritten.

Shapes: B batch, L levels, P positions and N blocks of the canvas, X channels: C or K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.weighted import Levels
from pipeline.codecs.frs2.inputs import MapInputs
from pipeline.codecs.frs2.levels import LevelPredictor
from pipeline.codecs.frs2.predict_scores import predict_packed, whiten
from pipeline.codecs.frs2.transform import PredictedTransform, Stored


class Blocks(NamedTuple):
    """What a cache has of a tensor: weighted residuals (B, N, 16, X), and whether predictions are used (B, L).

    spare: a tensor of the residuals' size. Both may be overwritten.
    """

    residuals: Tensor
    spare: Tensor
    used: Tensor

    def split(self, maps: BatchMaps) -> Stored:
        """Return the same by level."""
        canvas = maps.canvas
        parts = zip(canvas.split_blocks(self.residuals), canvas.padded, canvas.sizes)
        left = [part.reshape(len(part), h4, w4, -1)[:, :h, :w].movedim(-1, 1) for part, (h4, w4), (h, w) in parts]
        return Stored(left, list(self.used.unbind(dim=1)))


def rebuild_features(transform: PredictedTransform, stored: Blocks, inputs: MapInputs) -> Tensor:
    """Return the features of all levels, (B, P, C)."""
    value = transform.packed_mean("feature", inputs.maps, stored.spare)
    if "level_in" in transform.tables:
        _add_predicted(transform, value, stored, inputs)
    else:
        transform.add_residuals(value, stored.residuals, inputs.maps, "feature")
    return value


def _add_predicted(transform: PredictedTransform, value: Tensor, stored: Blocks, inputs: MapInputs) -> None:
    """Add predictions and residuals to the means (B, P, C) of the features, from the coarsest level on."""
    canvas, inverse = inputs.maps.canvas, transform.weights("feature", inputs.maps).inverse_root[..., None]
    parts = zip(canvas.planes(value), canvas.split_blocks(stored.residuals), canvas.by_block(inverse))
    predictor, r = LevelPredictor(transform.tables_on(value.device), inputs, stored.used), None
    for level, (plane, part, root) in reversed(list(enumerate(parts))):
        r = torch.zeros_like(plane) if r is None else predictor.predict(level, r)
        canvas.in_blocks(r).addcmul_(part, root)
        plane.add_(r)


def rebuild_scores(transform: PredictedTransform, stored: Blocks, inputs: MapInputs, features: Tensor) -> Levels:
    """Return the scores of every level. features: decoded, (B, P, C)."""
    maps = inputs.maps
    if "net_output" in transform.tables:
        table = transform.tables_on(stored.used.device)
        u = predict_packed(table, whiten(table, features), inputs, stored.spare)
        if not _all_used(stored.used):
            used = stored.used[:, maps.canvas.level, None]
            u = torch.where(used, u, transform.packed_mean("score", maps, torch.empty_like(u)))
    else:
        u = transform.packed_mean("score", maps, stored.spare)
    transform.add_residuals(u, stored.residuals, maps, "score")
    u *= torch.abs(u, out=stored.residuals.view_as(u))
    return maps.canvas.split_channels(u)


def _all_used(used: Tensor) -> bool:
    """Return whether all predictions are known to be used. A GPU is not asked, because that would wait for it."""
    return used.device.type == "cpu" and bool(used.all())
