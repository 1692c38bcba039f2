"""The leading directions of the scores of a wide head, without a matrix of all pairs of its channels.

A head of 10,827 channels (1,203 classes, 9 anchors) would need 0.9 GB for a covariance, and minutes for its
eigenvectors. One pass sums Y = C Q for a random orthonormal Q (K, SKETCH) instead, from which the Nystrom approximation
C = Y (Q^T Y)^-1 Y^T has the leading eigenvectors. Source: Tropp, Yurtsever, Udell, Cevher, "Fixed-rank approximation of
a positive-semidefinite matrix from streaming data", NeurIPS 2017, algorithm 3.

Shapes: K score channels, N positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.transform import orient

WIDE = 2048  # channels; a covariance of more is not computed
RANK, SKETCH = 512, 640  # directions that are kept, and that are summed up
SEED = 520
TINY = 1e-300


class BucketSums(Protocol):
    """Sums of one level by bucket of the map: weights (BUCKETS,), and first moments (BUCKETS, K)."""

    weight: np.ndarray
    first: np.ndarray


class Sketch:
    """Sums of C Q and of the trace of C, where C is the second moment of all levels together."""

    def __init__(self, channels: int) -> None:
        generator = torch.Generator().manual_seed(SEED)
        random = torch.randn((channels, min(SKETCH, channels)), generator=generator, dtype=torch.float64)
        self._directions = torch.linalg.qr(random)[0].float()
        self._sum = np.zeros(tuple(self._directions.shape))
        self._energy = 0.0

    def add(self, x: Tensor, weight: Tensor) -> None:
        """Add values x (N, K) with weight (N,)."""
        self._directions = self._directions.to(x.device)
        seen = (x @ self._directions) * weight[:, None]
        self._sum += (x.T @ seen).double().cpu().numpy()
        self._energy += float(torch.linalg.vector_norm(x, dim=1).double().square() @ weight.double())

    def basis(self, sums: Sequence[BucketSums], means: np.ndarray) -> tuple[np.ndarray, float]:
        """Return a basis (K, RANK) of what is left around the means (L, BUCKETS, K), and its whole energy."""
        directions = self._directions.double().cpu().numpy()
        found, energy = self._sum.copy(), self._energy
        for moments, mean in zip(sums, means.astype(np.float64)):
            weighted = mean * moments.weight[:, None]
            found -= moments.first.T @ (mean @ directions) + mean.T @ ((moments.first - weighted) @ directions)
            energy -= float(2 * (moments.first * mean).sum() - (weighted * mean).sum())
        return nystrom(found, directions)[:, :RANK], max(energy, 0.0)


def nystrom(found: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return about the leading eigenvectors (K, S) of a positive semidefinite C, from Y = C Q (K, S) and Q."""
    shift = float(np.finfo(np.float32).eps) * max(float(np.linalg.norm(found)), TINY)
    shifted = found + shift * directions
    core = directions.T @ shifted
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    root = vectors / np.sqrt(np.maximum(values, shift))
    return orient(np.linalg.svd(shifted @ root, full_matrices=False)[0])
