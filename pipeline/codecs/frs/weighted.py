"""The weighted transform of the frs codec, whose precision follows the weight m of each position in the loss.

m is the decoded richness map, S_l its sum over level l, U a KLT basis, mu and t0 are means given (level, bucket of m):

    features   q = rint( DCT4x4[ U_l^T sqrt(m) (y - mu_l) ] / D_l )
    scores     q = rint( DCT4x4[ U^T sqrt(m) (sqrt(t) - sqrt(t0_l)) ] / D_l ),   t = u |u| after decoding u
    D_l = step * S_l^0.5 * (sum_l S_l)^-0.3,   steps: chosen for `quality`, the gradient error of each loss on a probe

The feature loss is the squared error between sqrt(m) y and sqrt(m) a, so sqrt(m) y is transformed. The `universal`
profile serves losses that are not weighted by m, and uses m = 1 for features. u |u| is not clipped to [0, m], because
clipping would bias the sum over neighbours. docs/format.md has the same transform in 60 lines of numpy.

Shapes: B batch, R planes kept, X channels or score channels, (H4, W4) a level's grid padded to multiples of 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps, CodedMap
from pipeline.codecs.frs.transform import dct, steps, to_blocks
from pipeline.records import TeacherOutput

TINY = torch.finfo(torch.float32).tiny
Levels = list[Tensor]


class WeightedTransform:
    """Transforms a teacher's tensors to coefficients and back, with the given tables. Immutable.

    tables: `{what}_mean` and `{what}_basis`, where `what` is 'feature' or 'score', and others to copy to the device.
    """

    def __init__(self, map_top: int, profile: str, tables: Mapping[str, np.ndarray]) -> None:
        self.map_top, self.profile, self.tables = map_top, profile, tables
        self._on_device: dict[str, dict[str, Tensor]] = {}

    def with_tables(self, tables: Mapping[str, np.ndarray]) -> WeightedTransform:
        """Return this transform with other tables."""
        return WeightedTransform(self.map_top, self.profile, tables)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without tables on a device. A spawned worker checks samples but does not decode them."""
        return {**self.__dict__, "_on_device": {}}

    def table(self, name: str, device: torch.device) -> Tensor:
        """Return a table on a device. It is copied there only once."""
        if str(device) not in self._on_device:
            moved = {key: torch.from_numpy(table).to(device) for key, table in self.tables.items()}
            self._on_device[str(device)] = moved
        return self._on_device[str(device)][name]

    def code_maps(self, output: TeacherOutput) -> BatchMaps:
        """Code the richness maps of a batch, and return them decoded."""
        samples = [CodedMap.encode([m[b] for m in output.frs], self.map_top) for b in range(len(output.frs[0]))]
        return BatchMaps(samples, output.levels)

    def weights(self, what: str, maps: BatchMaps) -> BatchMaps:
        """Return the weight of each position: its m, or 1 for the features of the universal profile."""
        return maps.uniform() if what == "feature" and self.profile == "universal" else maps

    def step_sizes(self, what: str, maps: BatchMaps, step: float) -> Levels:
        """Return D_l (B, 1, 1, 1) of every level."""
        return steps(self.weights(what, maps).floats, step)

    def _basis(self, what: str, level: int, device: torch.device) -> Tensor:
        """Return the basis (X, R). Features have one for each level, scores one for all levels."""
        basis = self.table(f"{what}_basis", device)
        return basis[level] if basis.dim() == 3 else basis

    def _mean(self, what: str, level: int, maps: BatchMaps) -> Tensor:
        """Return the mean (B, X, H, W) given the map."""
        buckets = maps.buckets[level]
        return self.table(f"{what}_mean", buckets.device)[level][buckets].movedim(-1, 1)

    def coefficients(self, output: TeacherOutput, maps: BatchMaps, what: str) -> tuple[Levels, Levels]:
        """Return coefficients (B, R, H4, W4) before rounding, and the residual's squared norm (B,), of every level."""
        planes, energy = [], []
        for level, (m, value) in enumerate(zip(self.weights(what, maps).floats, output.values(what))):
            plain = value.float() if what == "feature" else value.float().sqrt()
            residual = m.sqrt()[:, None] * (plain - self._mean(what, level, maps))
            rotated = torch.einsum("cr,bchw->brhw", self._basis(what, level, m.device), residual)
            planes.append(dct(to_blocks(rotated)))
            energy.append(residual.square().sum(dim=(1, 2, 3)))
        return planes, energy

    def rebuild(self, planes: Levels, maps: BatchMaps, what: str) -> Levels:
        """Return the tensors (B, X, H, W) of coefficients (B, R, H4, W4) of every level. Inverse of `coefficients`."""
        out = []
        for level, (coefficients, m) in enumerate(zip(planes, self.weights(what, maps).floats)):
            blocks = dct(coefficients, inverse=True)[..., : m.shape[1], : m.shape[2]]
            residual = torch.einsum("cr,brhw->bchw", self._basis(what, level, m.device), blocks)
            # Positions with m = 0 have no coefficients and no weight in a loss. They get the mean.
            root = m.sqrt()[:, None]
            strength = torch.where(root > 0, 1 / root.clamp_min(TINY), 0.0)
            value = torch.addcmul(self._mean(what, level, maps), residual, strength)
            out.append(value if what == "feature" else value * value.abs())
        return out

    def quantise(self, exact: Levels, maps: BatchMaps, what: str, step: float) -> Levels:
        """Quantise coefficients with a step, and return the decoded tensors."""
        sizes = self.step_sizes(what, maps, step)
        return self.rebuild([torch.round(c / d) * d for c, d in zip(exact, sizes)], maps, what)
