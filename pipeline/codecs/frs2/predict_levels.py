"""Predict the features of an FPN level from the next coarser level, decoded, and from the map.

    p_l = enlarge(W_l r + N_l * (P_l r)) + V_l * [log2(m) / 6 + 1, sqrt(m)] + b_l

r: decoded features of level l + 1 without their mean given the map. P: their REDUCED leading directions. N and V are
3x3 convolutions, N without its centre. W and N have a joint rank of at most RANK.

The prediction is only added to what is decoded: no order, count or size depends on it, so two devices that round
differently still read the same symbols. The coarsest level has no prediction, and a level where it does not pay has
zeros in its tables.

W, N, V and b are a ridge regression with the weights w of the loss. Its penalty, whether it has neighbours (N), and
whether a level has a prediction at all, are chosen on views that are held back. Rare views have features many times as
large, which no regression fits, so each view has the same weight, and the encoder switches the prediction off where it
leaves more than there was.

Shapes: L levels, C channels, D reduced channels, R rank, N positions, X = C + 8 D + 19 inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs2.inputs import MAP_INPUTS

RANK, REDUCED = 96, 48
TAPS = 9 * MAP_INPUTS
NEIGHBOURS = [0, 1, 2, 3, 5, 6, 7, 8]  # of a 3x3 window, row by row
PENALTIES = (1e-3, 1e-2, 1e-1)  # of the ridge, in units of the inputs' mean second moment
PAYS = 0.97  # largest share of the energy that a prediction worth its time leaves
HELD, MOST_HELD = 4, 48  # every fourth view is held back, up to 48 views
TABLES = {
    **{"level_reduce": "float16", "level_in": "float16", "level_near": "float16", "level_out": "float16"},
    **{"level_map": "float32", "level_bias": "float32"},
}
TINY = 1e-30


def level_shapes(levels: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each table."""
    rank, reduced = min(RANK, channels), min(REDUCED, channels)
    return {
        "level_reduce": (levels - 1, reduced, channels),
        "level_in": (levels - 1, rank, channels),
        "level_near": (levels - 1, rank, reduced, 3, 3),
        "level_out": (levels - 1, channels, rank),
        "level_map": (levels - 1, channels, TAPS),
        "level_bias": (levels - 1, channels),
    }


def neighbours(reduced: Tensor) -> Tensor:
    """Return (B, D, 8, h, w): the neighbours of each position of (B, D, h, w), with zeros beyond the border."""
    windows = F.unfold(reduced, 3, padding=1).unflatten(1, (-1, 9))[:, :, NEIGHBOURS]
    return windows.unflatten(3, tuple(reduced.shape[-2:]))


class Regression(NamedTuple):
    """Weights (X, C) of a level, and the second moment (C, C) of what they leave."""

    weights: np.ndarray
    left: np.ndarray


class LevelMoments:
    """Joint second moments of a level's inputs and features. Each view has the weight of one, whatever its energy.

    Every HELD-th view is only used to choose the regression, and to decide whether it pays.
    """

    def __init__(self, channels: int) -> None:
        self._channels, self._views = channels, 0
        self._sum: np.ndarray = np.zeros(1)
        self._held: list[np.ndarray] = []

    def add(self, coarser: Tensor, near: Tensor, taps: Tensor, target: Tensor, weight: Tensor) -> None:
        """Add a batch.

        coarser: r of level + 1 at this level's size, (B, C, H, W). near: its `neighbours` at this size, (B, 8 D, H, W).
        taps: 3x3 windows of the map's inputs, (B, TAPS, H, W). target: y - mean (B, C, H, W). weight: of each position
        (B, H, W).
        """
        ones = torch.ones_like(weight)[:, None].flatten(2)
        parts = [part.flatten(2) for part in (coarser, near, taps)] + [ones, target.flatten(2)]
        z = torch.cat(parts, dim=1) * weight.flatten(1).sqrt()[:, None]
        norm = z[:, -self._channels :].square().sum(dim=(1, 2), keepdim=True).sqrt()
        z = torch.where(norm > 0, z / norm.clamp_min(TINY), 0.0)
        for row in z:
            square = (row @ row.T).cpu().numpy()
            if self._views % HELD == HELD - 1 and len(self._held) < MOST_HELD:
                self._held.append(square)
            self._sum = self._sum + square.astype(np.float64)
            self._views += 1

    def fit(self) -> Regression | None:
        """Return the weights of the best regression; None where no prediction pays."""
        apart = self._sum - sum(square.astype(np.float64) for square in self._held)
        choices = [(penalty, near) for penalty in PENALTIES for near in (True, False)]
        left = {choice: self._mean_left(self._solve(apart, *choice)) for choice in choices}
        best = min(left, key=lambda choice: left[choice])
        if not left[best] < PAYS:
            return None
        weights = self._solve(self._sum, *best)
        return Regression(weights, self._left(weights, self._sum))

    def _mean_left(self, weights: np.ndarray) -> float:
        """Return the mean share of the held views' energy that weights leave. A sample can do without a prediction."""
        shares = [np.trace(self._left(weights, s)) / max(np.trace(self._targets(s)), TINY) for s in self._held]
        return float(np.minimum(shares, 1.0).mean()) if shares else 1.0

    def _targets(self, sums: np.ndarray) -> np.ndarray:
        return sums[-self._channels :, -self._channels :]

    def _solve(self, sums: np.ndarray, penalty: float, near: bool) -> np.ndarray:
        """Solve the ridge regression (X, C), and reduce its part from the coarser level to rank RANK."""
        cut, c = len(sums) - self._channels, self._channels
        from_coarser = np.arange(cut) < cut - TAPS - 1
        used = np.flatnonzero(near | (np.arange(cut) < c) | ~from_coarser)
        square, product = sums[np.ix_(used, used)].astype(np.float64), sums[used, cut:]
        square[np.diag_indices(len(used))] += max(penalty * np.trace(square) / len(used), TINY)
        weights = np.zeros((cut, c))
        weights[used] = np.linalg.solve(square, product)
        if c > RANK:
            part = weights[from_coarser]
            explained = part.T @ sums[: len(part), : len(part)] @ part
            leading = np.linalg.eigh(explained)[1][:, -RANK:]
            weights[from_coarser] = part @ leading @ leading.T
        return weights

    def _left(self, weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """Return the second moment (C, C) that weights leave of the features with these sums."""
        cut = len(sums) - self._channels
        cross = weights.T @ sums[:cut, cut:]
        return self._targets(sums) - cross - cross.T + weights.T @ sums[:cut, :cut] @ weights


def to_tables(found: list[Regression | None], reduce: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tables of the predictions of levels 0 to L - 2. reduce: P of each of them, (L - 1, D, C)."""
    levels, reduced, channels = reduce.shape
    shapes = level_shapes(levels + 1, channels)
    tables = {name: np.zeros(shape, TABLES[name]) for name, shape in shapes.items()}
    tables["level_reduce"][:] = reduce
    rank, near = shapes["level_in"][1], channels + 8 * reduced
    for level, regression in enumerate(found):
        if regression is None:
            continue
        w = regression.weights
        u, s, v = np.linalg.svd(w[:near].T, full_matrices=False)
        root = np.sqrt(s[:rank])
        through = root[:, None] * v[:rank]
        kernel = np.zeros((rank, reduced, 9))
        kernel[:, :, NEIGHBOURS] = through[:, channels:].reshape(rank, reduced, 8)
        tables["level_in"][level] = through[:, :channels]
        tables["level_near"][level] = kernel.reshape(rank, reduced, 3, 3)
        tables["level_out"][level] = u[:, :rank] * root
        tables["level_map"][level] = w[near:-1].T
        tables["level_bias"][level] = w[-1]
    return tables
