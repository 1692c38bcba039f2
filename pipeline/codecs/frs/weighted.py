"""The weighted transform of the frs codec, whose precision follows the weight m of each position in the loss.

m is the decoded richness map, S_l its sum over level l, U a KLT basis, mu and t0 are means given (level, bucket of m):

    features   q = rint( DCT4x4[ U_l^T sqrt(m) (y - mu_l) ] / D_l )
    scores     q = rint( DCT4x4[ U^T sqrt(m) (sqrt(t) - sqrt(t0_l)) ] / D_l ),   t = u |u| after decoding u
    D_l = step * S_l^0.5 * (sum_l S_l)^-0.3,   steps: chosen for `quality`, the gradient error of each loss on a probe

The feature loss is the squared error between sqrt(m) y and sqrt(m) a, so sqrt(m) y is transformed. The `universal`
profile serves losses that are not weighted by m, and uses m = 1 for features. u |u| is not clipped to [0, m], because
clipping would bias the sum over neighbours. docs/format.md has the same transform in 60 lines of numpy. A wide head has
more planes (channel_planes.py).

Shapes: B batch, R planes kept, X channels or score channels, (H4, W4) a level's grid padded to multiples of 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs import channel_planes
from pipeline.codecs.frs.channel_planes import has_channel_planes
from pipeline.codecs.frs.map import BatchMaps, strengths_of
from pipeline.codecs.frs.map_values import inverse_root
from pipeline.codecs.frs.order import ExpectedSizes, SymbolOrder, Symbols
from pipeline.codecs.frs.sparse import Coefficients
from pipeline.codecs.frs.tables import widest
from pipeline.codecs.frs.transform import dct, to_blocks
from pipeline.codecs.packing import narrow, widen
from pipeline.records import TeacherOutput

Levels = list[Tensor]


class WeightedTransform:
    """Transforms a teacher's tensors to coefficients and back, with the given tables. Immutable.

    tables: `{what}_mean` and `{what}_basis`, where `what` is 'feature' or 'score', and others to copy to the device.
    widths: channels of the features of every level; None if they are equal. Narrower levels are coded with zeros.
    """

    def __init__(
        self, map_top: int, profile: str, tables: Mapping[str, np.ndarray], widths: Sequence[int] | None = None
    ) -> None:
        self.map_top, self.profile, self.tables, self.widths = map_top, profile, tables, widths
        self._on_device: dict[str, dict[str, Tensor]] = {}
        self._expected: dict[tuple[str, str], ExpectedSizes] = {}

    def with_tables(self, tables: Mapping[str, np.ndarray]) -> WeightedTransform:
        """Return this transform with other tables."""
        return WeightedTransform(self.map_top, self.profile, tables, self.widths)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without tables on a device. A spawned worker checks samples but does not decode them."""
        return {**self.__dict__, "_on_device": {}, "_expected": {}}

    def table(self, name: str, device: torch.device) -> Tensor:
        """Return a table on a device, float16 ones as float32. It is copied there only once.

        A product may depend on the order of its factors in memory, so each table has the same one, read or fitted.
        """
        if str(device) not in self._on_device:
            moved = {key: torch.from_numpy(np.array(table, order="C")).to(device) for key, table in self.tables.items()}
            self._on_device[str(device)] = self.derive(
                {key: table.float() if table.dtype == torch.float16 else table for key, table in moved.items()}
            )
        return self._on_device[str(device)][name]

    def derive(self, tables: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tables of a device with those that are computed from them: `{what}_rows`, the basis as rows.

        The planes of single channels have one row of zeros after the others.
        """
        bases = {name.removesuffix("_basis"): table for name, table in tables.items() if name.endswith("_basis")}
        rows = {what: basis.transpose(-1, -2).contiguous() for what, basis in bases.items()}
        wide = {what: F.pad(row, (0, 0, 0, 1)) for what, row in rows.items() if has_channel_planes(self.tables, what)}
        return tables | {f"{what}_rows": row for what, row in (rows | wide).items()}

    def symbol_order(self, what: str, maps: BatchMaps) -> SymbolOrder:
        """Return the order of the symbols of a batch."""
        return self.symbol_orders([what], maps)[0]

    def symbol_orders(self, kinds: Sequence[str], maps: BatchMaps) -> list[SymbolOrder]:
        """Return the order of the symbols of each tensor of a batch."""
        weights, device = [self.weights(what, maps) for what in kinds], maps.exponents.device
        distinct = list(dict.fromkeys(weights))
        strengths = dict(zip(distinct, strengths_of(distinct)))
        return [SymbolOrder(self._expected_sizes(what, device), strengths[own]) for what, own in zip(kinds, weights)]

    def _expected_sizes(self, what: str, device: torch.device) -> ExpectedSizes:
        if (what, str(device)) not in self._expected:
            expected = self.tables[f"{what}_expected"]
            self._expected[what, str(device)] = ExpectedSizes.from_table(expected, device, widest(self.tables))
        return self._expected[what, str(device)]

    def code_maps(self, output: TeacherOutput) -> BatchMaps:
        """Code the richness maps of a batch, and return them decoded."""
        return BatchMaps.encode(output.frs, self.map_top)

    def weights(self, what: str, maps: BatchMaps) -> BatchMaps:
        """Return the weight of each position: its m, or 1 for the features of the universal profile."""
        return maps.uniform if self.is_uniform(what) else maps

    def is_uniform(self, what: str) -> bool:
        """Return whether each position has the same weight."""
        return what == "feature" and self.profile == "universal"

    def step_sizes(self, what: str, maps: BatchMaps, step: float) -> Tensor:
        """Return D_l of every level, (B, L)."""
        return self.weights(what, maps).steps.of(step)

    def _basis(self, what: str, level: int, device: torch.device) -> Tensor:
        """Return the basis (X, R). Features have one for each level, scores one for all levels."""
        basis = self.table(f"{what}_basis", device)
        return basis[level] if basis.dim() == 3 else basis

    def mean(self, what: str, level: int, maps: BatchMaps) -> Tensor:
        """Return the mean (B, X, H, W) given the map."""
        buckets = maps.buckets[level]
        rows = self.table(f"{what}_mean", buckets.device)[level].index_select(0, buckets.flatten())
        return rows.unflatten(0, buckets.shape).movedim(-1, 1)

    def coefficients(self, output: TeacherOutput, maps: BatchMaps, what: str) -> tuple[Levels, Levels]:
        """Return coefficients (B, R, H4, W4) before rounding, and the residual's squared norm (B,), of every level."""
        planes, energy = [], []
        for level, (m, value) in enumerate(zip(self.weights(what, maps).floats, output.values(what))):
            mean = self.mean(what, level, maps)
            plain = widen(value.float(), mean.shape[1]) if what == "feature" else value.float().sqrt()
            residual = m.sqrt()[:, None] * (plain - mean)
            planes.append(self.project(what, level, residual))
            energy.append(residual.square().sum(dim=(1, 2, 3)))
        return planes, energy

    def rebuild(self, planes: Iterable[Tensor], maps: BatchMaps, what: str) -> Levels:
        """Return the tensors (B, X, H, W) of coefficients (B, R, H4, W4) of every level. Inverse of `coefficients`."""
        out = []
        for level, (coefficients, m) in enumerate(zip(planes, self.weights(what, maps).floats)):
            residual = self.unproject(what, level, coefficients, (m.shape[1], m.shape[2]))
            value = torch.addcmul(self.mean(what, level, maps), residual, inverse_root(m)[:, None])
            out.append(value if what == "feature" else value * value.abs())
        return narrow(out, self.widths) if what == "feature" else out

    def add_mean(self, left: Tensor, spare: Tensor, maps: BatchMaps, what: str) -> Levels:
        """Return the tensors (B, X, H, W) of weighted residuals (B, N, 16, X), channels last. Both are overwritten."""
        value = self.packed_mean(what, maps, spare)
        self.add_residuals(value, left, maps, what)
        if what == "score":
            value *= torch.abs(value, out=left.view_as(value))
        levels = maps.canvas.split_channels(value)
        return narrow(levels, self.widths) if what == "feature" else levels

    def packed_mean(self, what: str, maps: BatchMaps, out: Tensor) -> Tensor:
        """Return the mean (B, P, X) given the map, in the memory of `out`."""
        mean, number = self.table(f"{what}_mean", out.device), maps.mean_number
        flat = torch.index_select(mean.flatten(0, 1), 0, number.flatten(), out=out.view(-1, mean.shape[-1]))
        return flat.unflatten(0, number.shape)

    def add_residuals(self, value: Tensor, left: Tensor, maps: BatchMaps, what: str) -> None:
        """Add weighted residuals (B, N, 16, X) to a tensor (B, P, X), without their weight."""
        canvas, inverse = maps.canvas, self.weights(what, maps).inverse_root[..., None]
        for level, part, root in zip(canvas.by_block(value), canvas.split_blocks(left), canvas.by_block(inverse)):
            level.addcmul_(part, root)

    def project(self, what: str, level: int, residual: Tensor) -> Tensor:
        """Return the coefficients (B, R, H4, W4) of a weighted residual (B, X, H, W)."""
        if has_channel_planes(self.tables, what):
            return channel_planes.project(self._basis(what, level, residual.device), residual)
        rotated = torch.einsum("cr,bchw->brhw", self._basis(what, level, residual.device), residual)
        return dct(to_blocks(rotated))

    def unproject(self, what: str, level: int, coefficients: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the weighted residual (B, X, H, W) of coefficients (B, R, H4, W4). Inverse of `project`."""
        if has_channel_planes(self.tables, what):
            return channel_planes.unproject(self._basis(what, level, coefficients.device), coefficients, size)
        blocks = dct(coefficients, inverse=True)[..., : size[0], : size[1]]
        return torch.einsum("cr,brhw->bchw", self._basis(what, level, blocks.device), blocks)

    def coefficients_of(self, symbols: Symbols, values: Tensor, what: str) -> Coefficients:
        """Return the coefficients of symbols and their values (B, T) times the step."""
        basis = self.table(f"{what}_rows", values.device)
        row, channel = symbols.plane if basis.dim() == 2 else symbols.row, None
        if has_channel_planes(self.tables, what):
            row, channel = row.clamp_max(len(basis) - 1), row - (len(basis) - 1)
        return Coefficients(symbols.block, symbols.frequency, row, values, basis.view(-1, basis.shape[-1]), channel)

    def overlap(self, what: str, scaled: Levels, rounded: Levels) -> float:
        """Return by how much the error of the residuals exceeds that of their coefficients over the step, as energies.

        By Parseval's theorem, this is 0 where the planes are orthogonal.
        """
        if not has_channel_planes(self.tables, what):
            return 0.0
        parts = enumerate(zip(scaled, rounded))
        return sum(channel_planes.overlap(self._basis(what, n, c.device), c, q) for n, (c, q) in parts)

    def trial(self, output: TeacherOutput, maps: BatchMaps, what: str) -> Callable[[float], Levels]:
        """Return a function from a step to the decoded tensors. It is called with several steps."""
        exact, _ = self.coefficients(output, maps, what)
        return lambda step: self.quantise(exact, maps, what, step)

    def quantise(self, exact: Levels, maps: BatchMaps, what: str, step: float) -> Levels:
        """Quantise coefficients with a step, and return the decoded tensors."""
        sizes = per_level(self.step_sizes(what, maps, step))
        return self.rebuild(((c / d).round_().mul_(d) for c, d in zip(exact, sizes)), maps, what)


def per_level(sizes: Tensor) -> list[Tensor]:
    """Return (B, L) as [(B, 1, 1, 1)], to multiply the planes of every level."""
    return list(sizes[..., None, None, None].unbind(dim=1))
