"""Learn the basis and the expected sizes of what the score network leaves, on windows of views that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.transform import BLOCK, frequency_energy, klt
from pipeline.codecs.frs2.count_bits import Quantised, count_bits, find_step
from pipeline.codecs.frs2.predict_scores import MARGIN, predict_roots
from pipeline.codecs.frs2.residuals import choose
from pipeline.codecs.frs2.transform import PredictedTransform
from pipeline.codecs.frs2.windows import Window, Windows

Tables = dict[str, np.ndarray]
PAYS = 0.97  # largest share of the bits that a network worth its time leaves
LOST = 200.0  # share of a view's energy that a codec loses, in units of its squared gradient error: 80 and 220 measured
MOST_LOST = 0.5
TINY = 1e-30
LOWEST = 1e-12  # smallest expected size, relative to the largest


def learn_residuals(
    transform: PredictedTransform, windows: Windows, device: torch.device, allowed_error: float
) -> Tables | None:
    """Return `score_basis` (K, K) and `score_expected` (L, K, 16); None where the network does not pay.

    transform: with the network's tables, and with `score_basis` of the scores without it.
    """
    covariances: list[Any] = [0.0, 0.0]
    for _, _, *both in _residuals(transform, windows, device):
        for n, x in enumerate(both):
            flat = x[0].flatten(1)
            covariances[n] = covariances[n] + (flat @ flat.T).double().cpu().numpy()
    # Without the network too, the basis is that of these windows. One of other windows would take a few percent more.
    bases = [klt(covariance)[0] for covariance in covariances]
    fitted = [transform.with_tables({**transform.tables, "score_basis": basis}) for basis in bases]
    energy, strength = np.zeros((2, len(windows.held), len(bases[0]), BLOCK**2)), np.zeros(len(windows.held))
    shares: list[list[tuple[np.ndarray, float]]] = [[], []]
    for level, window, *both in _residuals(transform, windows, device):
        strength[level] += float(window.share.sum())
        whole = max(float(both[0].square().sum()), TINY)
        for n, x in enumerate(both):
            coefficients = fitted[n].project("score", level, x)
            found = frequency_energy(coefficients)[0].double().cpu().numpy()
            energy[n, level] += found
            shares[n].append((found / whole, coefficients[0, 0].numel() / BLOCK**2 / whole))
    steps = [find_step(rows, min(MOST_LOST, LOST * allowed_error**2)) for rows in shares]
    expected, bits = [to_classes(each, strength) for each in energy], [0.0, 0.0]
    for level, window, *both in _residuals(transform, windows, device):
        for n, x in enumerate(both):
            coded = Quantised.of(fitted[n].project("score", level, x), window.share.to(device), steps[n])
            bits[n] += count_bits(coded, expected[n][level])
    if not bits[1] < PAYS * bits[0]:
        return None
    return {"score_basis": bases[1], "score_expected": expected[1]}


def to_classes(energy: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return expected sizes (L, R, 16) int16, in steps of 2^(1/4), from energies and the sums of their weights (L,)."""
    size = energy / np.maximum(strength, TINY)[:, None, None]
    return np.round(2 * np.log2(np.maximum(size, LOWEST * max(size.max(), TINY)))).astype(np.int16)


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
            yield level, window, plain, choose(plain, predicted - mean, share)[0]
