"""Compute the predictions of predict_levels.py for a batch. What does not depend on decoded values is computed once.

A level is decoded after the next coarser one, so there is one pass for each. It sees the coarser level in half a grid
of the finer one: rows and columns beyond a sample's own grid are copies of its border, and the interpolation by 2
always gives the finer level's whole blocks.

Shapes: B batch, C channels, P positions of the canvas, (H4, W4) a level's canvas in whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs2.inputs import MapInputs


def derive_tables(tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tables of `LevelPredictor`: those with the same inputs as one, and positions before channels.

    level_from: (L - 1, C, D + R), of the coarser level. level_kernel: (L - 1, 9 D, R). level_taps: (L - 1, 19, C), of
    the windows of the map and of 1.
    """
    if "level_in" not in tables:
        return {}
    near, taps, bias = (tables[f"level_{name}"] for name in ("near", "map", "bias"))
    taps = taps.unflatten(2, (-1, 9)).transpose(2, 3).flatten(2)
    return {
        "level_from": torch.cat([tables["level_reduce"], tables["level_in"]], dim=1).transpose(1, 2).contiguous(),
        "level_kernel": near.permute(0, 3, 4, 2, 1).flatten(1, 3).contiguous(),
        "level_taps": torch.cat([taps, bias[..., None]], dim=2).transpose(1, 2).contiguous(),
    }


class LevelPredictor:
    """Predicts y - mean of the levels of a batch. used: whether a sample uses the prediction of a level (B, L)."""

    def __init__(self, table: Callable[[str], Tensor], inputs: MapInputs, used: Tensor | None = None) -> None:
        canvas, self._used = inputs.maps.canvas, used
        self._table, self._padded, self._batch = table, canvas.padded, len(canvas.own)
        self._inside = canvas.planes(canvas.inside[..., None])
        taps = F.pad(inputs.windows, (0, 1), value=1.0)
        if used is not None:
            taps *= used[:, canvas.level, None]
        self._taps = taps.split([h * w for h, w in canvas.padded], dim=1)
        self._seen = _see_coarser(inputs).split([h * w // 4 for h, w in canvas.padded], dim=1)
        self._sample = canvas.numbers(self._batch)[:, None]
        self._bordered = self._make_borders(table("level_near").shape[2], taps)

    def _make_borders(self, depth: int, like: Tensor) -> list[Tensor]:
        """Return zeros (B, H4 + 2, W4 + 2, D) for every level but the finest, which no level is predicted from."""
        shapes = [(self._batch, h + 2, w + 2, depth) for h, w in self._padded[1:]]
        counts = list(map(math.prod, shapes))
        return [part.view(shape) for part, shape in zip(like.new_zeros(sum(counts)).split(counts), shapes)]

    def predict(self, level: int, r: Tensor) -> Tensor:
        """Predict a level, (B, H4, W4, C).

        r: the decoded features of level + 1 without their mean, (B, H4, W4, C), with any numbers outside the samples'
        own grids.
        """
        through = self._read(level, r).view(self._batch, -1, self._table("level_out").shape[2])
        through = through[self._sample, self._seen[level]]
        if self._used is not None:
            through *= self._used[:, level, None, None]
        height, width = self._padded[level]
        small = (through.flatten(0, 1) @ self._table("level_out")[level].T).view(
            self._batch, height // 2, width // 2, -1
        )
        found = F.interpolate(small.movedim(-1, 1), scale_factor=2.0, mode="bilinear", align_corners=False)
        found = found.movedim(1, -1).contiguous()
        found.flatten(1, 2).baddbmm_(self._taps[level], self._table("level_taps")[level].expand(self._batch, -1, -1))
        return found

    def _read(self, level: int, r: Tensor) -> Tensor:
        """Return W_l r + N_l * (P_l r) before their last factor, (B H4 W4, R), on the grid of level + 1."""
        bordered, kernel = self._bordered[level], self._table("level_kernel")[level]
        depth = bordered.shape[3]
        both = r.flatten(0, 2) @ self._table("level_from")[level]
        reduced = both[:, :depth].unflatten(0, r.shape[:3])
        torch.mul(reduced, self._inside[level + 1], out=bordered[:, 1:-1, 1:-1])
        windows = bordered.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)
        return torch.addmm(both[:, depth:], windows.contiguous().view(len(both), -1), kernel)


def _see_coarser(inputs: MapInputs) -> Tensor:
    """Return the position of level + 1 that each square of a level sees, (B, P / 4) int64, of those of level + 1."""
    canvas = inputs.maps.canvas
    level, y, x, coarser, _ = canvas.squares
    row, column = (torch.minimum(at, last) for at, last in zip((y, x), (coarser - 1).unbind(dim=2)))
    return torch.addcmul(column, row, canvas.position_sides[:, 1].roll(-1)[level])
