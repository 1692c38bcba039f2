"""Learn the basis and the expected sizes of what the score network leaves, on windows of views that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.transform import frequency_energy, klt
from pipeline.codecs.frs2.predict_scores import predict_roots
from pipeline.codecs.frs2.transform import PredictedTransform, choose
from pipeline.codecs.frs2.windows import MARGIN, Window, Windows

Tables = dict[str, np.ndarray]
PAYS = 0.97  # largest share of the energy that a network worth its time leaves
LOWEST = 1e-12  # smallest expected size, relative to the largest


def learn_residuals(transform: PredictedTransform, windows: Windows, device: torch.device) -> Tables | None:
    """Return `score_basis` (K, K) and `score_expected` (L, K, 16); None where the network does not pay.

    transform: with the network's tables.
    """
    shares = list[float]()
    covariance: Any = 0.0
    for _, _, left, energies in _residuals(transform, windows, device):
        shares.append(energies[1] / max(energies[0], 1e-30) if energies[0] > 0 else 1.0)
        flat = left[0].flatten(1)
        covariance = covariance + (flat @ flat.T).double().cpu().numpy()
    if not shares or not float(np.mean(shares)) < PAYS:
        return None
    basis, _ = klt(covariance)
    transform = transform.with_tables({**transform.tables, "score_basis": basis})
    levels = len(windows.held)
    energy: list[Any] = [0.0] * levels
    strength = np.zeros(levels)
    for level, window, left, _ in _residuals(transform, windows, device):
        coefficients = transform.project("score", level, left)
        energy[level] = energy[level] + frequency_energy(coefficients)[0].double().cpu().numpy()
        strength[level] += float(window.share.sum())
    return {"score_basis": basis, "score_expected": to_classes(np.stack(energy), strength)}


def to_classes(energy: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return expected sizes (L, R, 16) int16, in steps of 2^(1/4), from energies and the sums of their weights (L,)."""
    size = energy / np.maximum(strength, 1e-30)[:, None, None]
    return np.round(2 * np.log2(np.maximum(size, LOWEST * max(size.max(), 1e-30)))).astype(np.int16)


def _residuals(
    transform: PredictedTransform, windows: Windows, device: torch.device
) -> Iterator[tuple[int, Window, Tensor, tuple[float, float]]]:
    """Yield level, window, sqrt(m / S_l) times what is left of sqrt(t), and its energy before and after."""
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
            _, left, _, before, after = choose(plain, predicted - mean, share)
            yield level, window, left, (float(before), float(after))
