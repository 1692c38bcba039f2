"""What the predictions of the frs2 codec see of a sample: the decoded map, and the coarser level at twice its size.

A sample decoded in a batch must not depend on the batch's canvas. Everything outside a sample's own grid is therefore
zero, like the padding of a convolution, or a copy of the grid's border before the grid is enlarged.

Shapes: B batch, C channels, (H, W) grid of a level on the batch's canvas, (h, w) a sample's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps

FAINTEST = 2.0**-24  # smaller values of the map look alike
OCTAVES = 6  # log2 of the map is divided by it, so that most values are near 1
MAP_INPUTS = 2


def log_map(m: Tensor) -> Tensor:
    """Return log2(m) / 6 + 1 of a decoded map."""
    return m.clamp_min(FAINTEST).log2() / OCTAVES + 1


def map_inputs(maps: BatchMaps, padded: bool = False) -> list[Tensor]:
    """Return of every level (B, 2, H, W): log2(m) / 6 + 1 and sqrt(m), 0 outside each sample's own grid.

    padded: with whole blocks.
    """
    canvas = maps.canvas
    both = torch.stack([log_map(maps.packed), maps.packed.sqrt()], dim=2) * canvas.inside[..., None]
    return [level.movedim(-1, 1) for level in (canvas.planes(both) if padded else canvas.split(both))]


def log_maps(maps: BatchMaps) -> list[Tensor]:
    """Return of every level (B, H, W): log2(m) / 6 + 1, 0 outside each sample's own grid."""
    return maps.canvas.split(log_map(maps.packed) * maps.canvas.inside)


def mix(weight: Tensor, x: Tensor) -> Tensor:
    """Return the products of a matrix (Y, X) with the channels of (B, X, H, W), channels last in memory."""
    return F.linear(x.movedim(1, -1), weight).movedim(-1, 1)


def inside(maps: BatchMaps, level: int) -> Tensor:
    """Return (B, 1, H, W): 1 in each sample's own grid, else 0."""
    return maps.uniform.floats[level][:, None]


def enlarge(x: Tensor, grids: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Enlarge (B, C, H, W) by bilinear interpolation with the fixed factor 2, to (B, C, *size).

    grids: each sample's own grid in x. What lies beyond it is a copy of its border, as if the sample were alone. Output
    rows beyond 2 H repeat the last one.
    """
    if any(grid != tuple(x.shape[-2:]) for grid in grids):
        x = x.clone()
        for row, (h, w) in zip(x, grids):
            row[:, h:], row[:, :, w:] = row[:, h - 1 : h], row[:, :, w - 1 : w]
    x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    height, width = (min(side, have) for side, have in zip(size, x.shape[-2:]))
    x = x[..., :height, :width]
    if (height, width) == tuple(size):
        return x
    return F.pad(x, (0, size[1] - width, 0, size[0] - height), mode="replicate")
