"""What the predictions of the frs2 codec see of a sample: the decoded map, and the coarser level at twice its size.

A sample decoded in a batch must not depend on the batch's canvas. Everything outside a sample's own grid is therefore
zero, like the padding of a convolution, or a copy of the grid's border before the grid is enlarged.

Shapes: B batch, C channels, P positions of the canvas, (H, W) grid of a level on it, (h, w) a sample's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.map_values import value_table
from pipeline.codecs.frs2.mosaic import Mosaic

FAINTEST = 2.0**-24  # smaller values of the map look alike
OCTAVES = 6  # log2 of the map is divided by it, so that most values are near 1
MAP_INPUTS = 2


def log_map(m: Tensor) -> Tensor:
    """Return log2(m) / 6 + 1 of a decoded map."""
    return m.clamp_min(FAINTEST).log2() / OCTAVES + 1


@lru_cache(maxsize=16)
def _input_table(top: int, device: torch.device) -> Tensor:
    """Return log2(m) / 6 + 1 and sqrt(m) by exponent and code, (256, 256, 2). It is copied to the device only once."""
    m = value_table(top, torch.device("cpu"))
    return torch.stack([log_map(m), m.sqrt()], dim=2).to(device)


class MapInputs:
    """What predictions see of the maps of a batch. channels: fewest of a tensor that is convolved on the mosaic."""

    def __init__(self, maps: BatchMaps, channels: int) -> None:
        self.maps, self.mosaic = maps, Mosaic(maps.canvas, channels)

    @cached_property
    def packed(self) -> Tensor:
        """log2(m) / 6 + 1 and sqrt(m) of each position, (B, P, 2), 0 outside each sample's own grid."""
        table = _input_table(self.maps.top, self.maps.codes.device)
        return self.maps.look_up(table).mul_(self.maps.canvas.inside[..., None])

    @cached_property
    def windows(self) -> Tensor:
        """`packed` of the 3x3 positions around each position, row by row, (B, P, 18)."""
        around = self.mosaic.neighbours
        found = F.pad(self.packed, (0, 0, 0, 1)).index_select(1, around.flatten())  # faster than `[:, around]`
        return found.unflatten(1, around.shape).flatten(2)

    def levels(self) -> list[Tensor]:
        """Return `packed` of every level, (B, 2, H, W)."""
        return self.maps.canvas.split_channels(self.packed)


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
