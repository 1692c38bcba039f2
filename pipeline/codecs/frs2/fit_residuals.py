"""Learn the basis and the expected sizes of what the score network leaves, on windows of views that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.transform import frequency_energy, klt
from pipeline.codecs.frs2.predict_scores import MARGIN, predict_roots
from pipeline.codecs.frs2.residuals import choose
from pipeline.codecs.frs2.transform import PredictedTransform
from pipeline.codecs.frs2.windows import Window, Windows

Tables = dict[str, np.ndarray]
PAYS = 0.97  # largest share of the bits that a network worth its time leaves
LOST = 10.0  # share of the energy that a codec loses, in units of the squared gradient error that it is made for
LOWEST = 1e-12  # smallest expected size, relative to the largest


def learn_residuals(
    transform: PredictedTransform, windows: Windows, device: torch.device, allowed_error: float
) -> Tables | None:
    """Return `score_basis` (K, K) and `score_expected` (L, K, 16); None where the network does not pay.

    transform: with the network's tables, and with `score_basis` of the scores without it.
    """
    covariance: Any = 0.0
    for _, _, _, left in _residuals(transform, windows, device):
        flat = left[0].flatten(1)
        covariance = covariance + (flat @ flat.T).double().cpu().numpy()
    basis, _ = klt(covariance)
    predicted = transform.with_tables({**transform.tables, "score_basis": basis})
    levels = len(windows.held)
    before: list[Any] = [0.0] * levels
    after: list[Any] = [0.0] * levels
    blocks, strength = np.zeros(levels), np.zeros(levels)
    for level, window, plain, left in _residuals(transform, windows, device):
        before[level] = before[level] + _group_energy(transform, level, plain)
        after[level] = after[level] + _group_energy(predicted, level, left)
        blocks[level] += np.prod([-(-side // 4) for side in window.share.shape])
        strength[level] += float(window.share.sum())
    distortion = min(0.5, LOST * allowed_error**2) * float(np.sum(before))
    old, new = (count_bits(np.stack(energy), blocks, distortion) for energy in (before, after))
    if not new < PAYS * old:
        return None
    return {"score_basis": basis, "score_expected": to_classes(np.stack(after), strength)}


def count_bits(energy: np.ndarray, blocks: np.ndarray, distortion: float) -> float:
    """Return the bits for Gaussian coefficients at a total squared error, by reverse water-filling.

    energy: of each group of coefficients (L, R, 16). blocks: the number of coefficients of a group, by level (L,).
    """
    counts = np.broadcast_to(np.maximum(blocks, 1)[:, None, None], energy.shape)
    variance = energy / counts
    low, high = 0.0, float(variance.max())
    for _ in range(60):
        middle = (low + high) / 2
        fits = float((np.minimum(variance, middle) * counts).sum()) <= distortion
        low, high = (middle, high) if fits else (low, middle)
    return float((counts * np.log2(np.maximum(variance / max(high, 1e-300), 1.0))).sum() / 2)


def to_classes(energy: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return expected sizes (L, R, 16) int16, in steps of 2^(1/4), from energies and the sums of their weights (L,)."""
    size = energy / np.maximum(strength, 1e-30)[:, None, None]
    return np.round(2 * np.log2(np.maximum(size, LOWEST * max(size.max(), 1e-30)))).astype(np.int16)


def _group_energy(transform: PredictedTransform, level: int, residual: Tensor) -> np.ndarray:
    """Return the energy (R, 16) of the coefficients of a residual (1, K, h, w)."""
    return frequency_energy(transform.project("score", level, residual))[0].double().cpu().numpy()


def _residuals(
    transform: PredictedTransform, windows: Windows, device: torch.device
) -> Iterator[tuple[int, Window, Tensor, Tensor]]:
    """Yield level, window, and sqrt(m / S_l) times what sqrt(t) leaves without and with the network, (1, K, h, w)."""
    table = transform.tables_on(device)
    for level, rows in enumerate(windows.held):
        for window in rows:
            x, log_map, m, inside = (part.to(device).float()[None] for part in window.inputs)
            height, width = window.share.shape
            inner = (..., slice(MARGIN, MARGIN + height), slice(MARGIN, MARGIN + width))
            predicted = predict_roots(table, level, x, log_map, m, inside[:, None])[inner]
            mean = table("score_mean")[level][window.bucket.to(device)].movedim(-1, 0)[None]
            share = window.share.to(device)[None]
            plain = share.sqrt()[:, None] * (window.roots.to(device).float()[None] - mean)
            yield level, window, plain, choose(plain, predicted - mean, share)[1]
