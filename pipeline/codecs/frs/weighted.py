"""The arithmetic of the frs codec: what the loss weights by m is coded with a precision that follows m.

With m the decoded richness map, S_l its sum over level l, U a KLT basis, mu and t0 means given (level, bucket of m):

    features   q = rint( DCT4x4[ U_l^T sqrt(m) (y - mu_l) ] / D_l )
    scores     q = rint( DCT4x4[ U^T sqrt(m) (sqrt(t) - sqrt(t0_l)) ] / D_l ),   t = u |u| after decoding u
    D_l = step * S_l^0.5 * (sum_l S_l)^-0.3,   steps: chosen for `quality`, the gradient error of each loss on a probe

The feature loss is plain squared error between sqrt(m) y and sqrt(m) a, so that is what is transformed. The `universal`
profile serves losses that do not weight by m, and puts 1 for m in the line of the features. u |u| is not clipped to
[0, m]: that would bias the sum over neighbours. docs/format.md has the same in 60 lines of numpy.

Shape legend: B batch, R planes kept, X channels or score channels, (H4, W4) a level's grid padded to whole 4x4 blocks.
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
    """Between a teacher's tensors and quantiser coefficients, for the given tables; `what` is 'feature' or 'score'.

    tables: `{what}_mean` and `{what}_basis`, and any others that are wanted on the device. Immutable.
    """

    def __init__(self, map_top: int, profile: str, tables: Mapping[str, np.ndarray]) -> None:
        self.map_top, self.profile, self.tables = map_top, profile, tables
        self._on_device: dict[str, dict[str, Tensor]] = {}

    def with_tables(self, tables: Mapping[str, np.ndarray]) -> WeightedTransform:
        return WeightedTransform(self.map_top, self.profile, tables)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lies on a device: a spawned worker process checks samples and decodes none."""
        return {**self.__dict__, "_on_device": {}}

    def table(self, name: str, device: torch.device) -> Tensor:
        """Return a table on a device; it is copied there once."""
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
        return maps.everywhere() if what == "feature" and self.profile == "universal" else maps

    def step_sizes(self, what: str, maps: BatchMaps, step: float) -> Levels:
        """Return D_l (B, 1, 1, 1) of every level."""
        return steps(self.weights(what, maps).floats, step)

    def _basis(self, what: str, level: int, device: torch.device) -> Tensor:
        """(X, R); features have one for each level, scores one for all."""
        basis = self.table(f"{what}_basis", device)
        return basis[level] if basis.dim() == 3 else basis

    def _mean(self, what: str, level: int, maps: BatchMaps) -> Tensor:
        """(B, X, H, W) expected from the map alone."""
        buckets = maps.buckets[level]
        return self.table(f"{what}_mean", buckets.device)[level][buckets].movedim(-1, 1)

    def coefficients(self, output: TeacherOutput, maps: BatchMaps, what: str) -> tuple[Levels, Levels]:
        """Transform a batch. Of every level: (B, R, H4, W4) before rounding, and (B,) the residual's squared norm."""
        planes, energy = [], []
        for level, (m, value) in enumerate(zip(self.weights(what, maps).floats, output.values(what))):
            plain = value.float() if what == "feature" else value.float().sqrt()
            residual = m.sqrt()[:, None] * (plain - self._mean(what, level, maps))
            rotated = torch.einsum("cr,bchw->brhw", self._basis(what, level, m.device), residual)
            planes.append(dct(to_blocks(rotated)))
            energy.append(residual.square().sum(dim=(1, 2, 3)))
        return planes, energy

    def rebuild(self, planes: Levels, maps: BatchMaps, what: str) -> Levels:
        """Invert `coefficients`: (B, R, H4, W4) of every level -> the teacher's tensors (B, X, H, W)."""
        out = []
        for level, (coefficients, m) in enumerate(zip(planes, self.weights(what, maps).floats)):
            blocks = dct(coefficients, inverse=True)[..., : m.shape[1], : m.shape[2]]
            residual = torch.einsum("cr,brhw->bchw", self._basis(what, level, m.device), blocks)
            # Where m = 0 nothing was coded, and no loss looks there: the mean remains.
            root = m.sqrt()[:, None]
            strength = torch.where(root > 0, 1 / root.clamp_min(TINY), 0.0)
            value = torch.addcmul(self._mean(what, level, maps), residual, strength)
            out.append(value if what == "feature" else value * value.abs())
        return out

    def quantised(self, exact: Levels, maps: BatchMaps, what: str, step: float) -> Levels:
        """Return what decoding gives for these coefficients with this step."""
        sizes = self.step_sizes(what, maps, step)
        return self.rebuild([torch.round(c / d) * d for c, d in zip(exact, sizes)], maps, what)
