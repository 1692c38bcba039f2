"""Statistics of a sample of views: means given the map, and covariances around them. One pass, constant memory.

Weights are w = m / S_l, where S_l is the map's sum over level l of the image. Every image and level therefore has the
same weight, as in the loss. With s_b = sum(w x) and the mean mu_b of bucket b, the covariance needs only sums:
sum(w (x - mu)(x - mu)^T) = sum(w x x^T) - sum_b (s_b mu_b^T + mu_b s_b^T - w_b mu_b mu_b^T).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.map_values import BUCKETS
from pipeline.codecs.frs.sketch import WIDE, Sketch
from pipeline.codecs.frs.transform import klt
from pipeline.codecs.packing import widen
from pipeline.records import TeacherOutput

TINY = torch.finfo(torch.float32).tiny
PRIOR = 1e-3  # weight of the level's mean in every bucket, in units of one view; stabilises rare buckets


class Moments:
    """Sums of one tensor over one level: weight and first moment by bucket, and the total second moment."""

    def __init__(self, channels: int, second: bool = True) -> None:
        """second: whether to sum up the second moment, (X, X)."""
        self.weight = np.zeros(BUCKETS)
        self.first = np.zeros((BUCKETS, channels))
        self.second = np.zeros((channels, channels) if second else (0, 0))

    def add(self, x: Tensor, weight: Tensor, bucket: Tensor) -> None:
        """Add values x (N, X) with weight (N,) and bucket (N,)."""
        weighted = x * weight[:, None]
        one_hot = torch.nn.functional.one_hot(bucket, BUCKETS).to(x.dtype)
        self.first += (one_hot.T @ weighted).double().cpu().numpy()
        self.weight += (one_hot.T @ weight).double().cpu().numpy()
        if len(self.second):
            self.second += (x.T @ weighted).double().cpu().numpy()

    def mean(self) -> np.ndarray:
        """Return the means (BUCKETS, X). Rare buckets are close to the level's mean."""
        level = self.first.sum(axis=0) / max(self.weight.sum(), 1e-30)
        return (self.first + PRIOR * level) / (self.weight[:, None] + PRIOR)

    def covariance(self, mean: np.ndarray) -> np.ndarray:
        """Return the second moment (X, X) around `mean`."""
        cross = self.first.T @ mean
        return self.second - cross - cross.T + (mean * self.weight[:, None]).T @ mean


class Statistics:
    """Accumulates Moments of features, sqrt(scores) and scores for every level."""

    def __init__(self, levels: int, channels: int, score_channels: int) -> None:
        """score_channels: 0 without class scores."""
        self.views, self._channels, self._scored = 0, channels, score_channels > 0
        self._features = [Moments(channels) for _ in range(levels)]
        self._sketch = Sketch(score_channels) if score_channels > WIDE else None
        self._roots = [Moments(score_channels, second=self._sketch is None) for _ in range(levels)]
        self._score_sums = np.zeros((levels, BUCKETS, score_channels))

    def add(
        self, output: TeacherOutput, feature_weights: list[Tensor], maps: list[Tensor], buckets: list[Tensor]
    ) -> None:
        """Add a batch. maps: decoded maps, the weights of the scores. All lists are [(B, H_l, W_l)]."""
        self.views += output.frs[0].shape[0]
        for level, numbers in enumerate(buckets):
            feature_weight, weight = (
                (m[level] / m[level].sum(dim=(1, 2), keepdim=True).clamp_min(TINY)).flatten()
                for m in (feature_weights, maps)
            )
            bucket = numbers.flatten()
            features = widen(output.features[level], self._channels).movedim(1, -1).flatten(0, 2).float()
            self._features[level].add(features, feature_weight, bucket)
            if not self._scored:
                continue
            scores = output.scores[level].movedim(1, -1).flatten(0, 2).float()
            roots = scores.sqrt()
            self._roots[level].add(roots, weight, bucket)
            if self._sketch is not None:
                self._sketch.add(roots, weight)
            del roots
            one_hot = torch.nn.functional.one_hot(bucket, BUCKETS).to(scores.dtype)
            self._score_sums[level] += (one_hot.T @ (scores * weight[:, None])).double().cpu().numpy()

    def features(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the features' means (L, BUCKETS, C), and the covariance (C, C) of every level."""
        means = np.stack([moments.mean() for moments in self._features]).astype(np.float32)
        return means, _covariances(self._features, means)

    def roots(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return sqrt(t0) (L, BUCKETS, K), the root of the scores' mean; a basis (K, R); and the energy around it.

        R is K, or RANK for more than WIDE channels. The basis is one for all levels.
        """
        means = []
        for moments, sums in zip(self._roots, self._score_sums):
            level = sums.sum(axis=0) / max(moments.weight.sum(), 1e-30)
            means.append(np.sqrt((sums + PRIOR * level) / (moments.weight[:, None] + PRIOR)))
        roots = np.stack(means).astype(np.float32)
        if self._sketch is not None:
            return roots, *self._sketch.basis(self._roots, roots)
        basis, values = klt(np.sum(_covariances(self._roots, roots), axis=0))
        return roots, basis, float(values.sum())


def _covariances(levels: list[Moments], means: np.ndarray) -> list[np.ndarray]:
    return [moments.covariance(mean.astype(np.float64)) for moments, mean in zip(levels, means)]
