"""Predict the features of an FPN level from the next coarser level, decoded, and from the map.

    p_l = enlarge(W_l r_(l+1)) + V_l * [log2(m) / 6 + 1, sqrt(m)] + b_l,   r = decoded features - mean given the map

V_l is a 3x3 convolution, and W_l = out in has a rank of at most RANK. The prediction is only added to what is decoded:
no order, count or size depends on it, so two devices that round differently still read the same symbols. The coarsest
level has no prediction, and a level where it does not pay has zeros in its tables.

W, V and b are a ridge regression with the weights w of the loss. Its penalty, and whether a level has a prediction at
all, are chosen on views that are held back. Rare views have features many times as large, which no regression fits, so
each view has the same weight, and the encoder switches the prediction off where it leaves more than there was.

Shapes: L levels, C channels, R rank, N positions, X = C + 19 inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs2.inputs import MAP_INPUTS

RANK = 96
TAPS = 9 * MAP_INPUTS
PENALTIES = (1e-3, 1e-2, 1e-1)  # of the ridge, in units of the inputs' mean second moment
PAYS = 0.97  # largest share of the energy that a prediction worth its time leaves
HELD, MOST_HELD = 4, 48  # every fourth view is held back, up to 48 views
TABLES = {"level_in": "float16", "level_out": "float16", "level_map": "float32", "level_bias": "float32"}
TINY = 1e-30


def level_shapes(levels: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each table."""
    rank = min(RANK, channels)
    return {
        "level_in": (levels - 1, rank, channels),
        "level_out": (levels - 1, channels, rank),
        "level_map": (levels - 1, channels, TAPS),
        "level_bias": (levels - 1, channels),
    }


def predict_level(
    table: Callable[[str], Tensor], level: int, coarser: Callable[[Tensor], Tensor], r: Tensor, inputs: Tensor
) -> Tensor:
    """Predict y - mean of a level, (B, C, H, W).

    table: returns a table by name. coarser: enlarges (B, C, h, w) to the level's size. r: the decoded features of level
    + 1 without their mean. inputs: `map_inputs` of the level.
    """
    through_in = torch.einsum("rc,bchw->brhw", table("level_in")[level], r)
    from_coarser = coarser(torch.einsum("cr,brhw->bchw", table("level_out")[level], through_in))
    weight = table("level_map")[level].unflatten(1, (MAP_INPUTS, 3, 3))
    return from_coarser + F.conv2d(inputs, weight, table("level_bias")[level], padding=1)


class Regression(NamedTuple):
    """Weights (X, C) of a level, and the second moment (C, C) of what they leave."""

    weights: np.ndarray
    left: np.ndarray


class LevelMoments:
    """Joint second moments of a level's inputs and features. Each view has the weight of one, whatever its energy.

    Every HELD-th view is only used to choose the penalty, and to decide whether a prediction pays.
    """

    def __init__(self, channels: int) -> None:
        self._channels, self._views = channels, 0
        self._sum = np.zeros((2 * channels + TAPS + 1,) * 2)
        self._held: list[np.ndarray] = []

    def add(self, enlarged: Tensor, inputs: Tensor, target: Tensor, weight: Tensor) -> None:
        """Add a batch.

        enlarged: r of the coarser level at this level's size, (B, C, H, W). inputs: `map_inputs`. target: y - mean
        (B, C, H, W). weight: of each position (B, H, W).
        """
        ones = torch.ones_like(weight)[:, None].flatten(2)
        z = torch.cat([enlarged.flatten(2), F.unfold(inputs, 3, padding=1), ones, target.flatten(2)], dim=1)
        z = z * weight.flatten(1).sqrt()[:, None]
        norm = z[:, -self._channels :].square().sum(dim=(1, 2), keepdim=True).sqrt()
        z = torch.where(norm > 0, z / norm.clamp_min(TINY), 0.0)
        for row in z:
            square = (row @ row.T).double().cpu().numpy()
            if self._views % HELD == HELD - 1 and len(self._held) < MOST_HELD:
                self._held.append(square.astype(np.float32))
            self._sum += square
            self._views += 1

    def fit(self) -> Regression | None:
        """Return the weights, of rank RANK from the coarser level; None where no prediction pays."""
        apart = self._sum - sum(square.astype(np.float64) for square in self._held)
        left = {penalty: self._mean_left(self._solve(apart, penalty)) for penalty in PENALTIES}
        best = min(left, key=lambda penalty: left[penalty])
        if not left[best] < PAYS:
            return None
        weights = self._solve(self._sum, best)
        return Regression(weights, self._left(weights, self._sum))

    def _mean_left(self, weights: np.ndarray) -> float:
        """Return the mean share of the held views' energy that weights leave. A sample can do without a prediction."""
        shares = [np.trace(self._left(weights, s)) / max(np.trace(self._targets(s)), TINY) for s in self._held]
        return float(np.minimum(shares, 1.0).mean()) if shares else 1.0

    def _targets(self, sums: np.ndarray) -> np.ndarray:
        return sums[-self._channels :, -self._channels :]

    def _solve(self, sums: np.ndarray, penalty: float) -> np.ndarray:
        """Solve the ridge regression, and reduce its part from the coarser level to rank RANK."""
        cut, c = len(sums) - self._channels, self._channels
        square, product = sums[:cut, :cut].copy(), sums[:cut, cut:]
        square[np.diag_indices(cut)] += max(penalty * np.trace(square) / cut, TINY)
        weights = np.linalg.solve(square, product)
        if c > RANK:
            explained = weights[:c].T @ sums[:c, :c] @ weights[:c]
            leading = np.linalg.eigh(explained)[1][:, -RANK:]
            weights[:c] = weights[:c] @ leading @ leading.T
        return weights

    def _left(self, weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """Return the second moment (C, C) that weights leave of the features with these sums."""
        cut = len(sums) - self._channels
        cross = weights.T @ sums[:cut, cut:]
        return self._targets(sums) - cross - cross.T + weights.T @ sums[:cut, :cut] @ weights


def to_tables(found: list[Regression | None], channels: int) -> dict[str, np.ndarray]:
    """Return the tables of the predictions of levels 0 to L - 2."""
    shapes = level_shapes(len(found) + 1, channels)
    tables = {name: np.zeros(shape, TABLES[name]) for name, shape in shapes.items()}
    for level, regression in enumerate(found):
        if regression is None:
            continue
        w = regression.weights
        u, s, v = np.linalg.svd(w[:channels].T)
        rank, root = shapes["level_in"][1], np.sqrt(s)
        tables["level_out"][level] = (u * root)[:, :rank]
        tables["level_in"][level] = (root[:, None] * v)[:rank]
        tables["level_map"][level] = w[channels : channels + TAPS].T
        tables["level_bias"][level] = w[-1]
    return tables
