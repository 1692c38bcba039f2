"""The planes of single channels, which code what the directions of a wide head leave.

A head of more than WIDE score channels keeps R directions U (K, R), orthonormal columns. With them alone, a class that
no calibration view shows would be lost. What they leave of a weighted residual x is coded in K more planes, and plane R
+ k adds to channel k alone:

    c1 = DCT[U^T x],   c2 = DCT[r],   r = x - U U^T x;   decoded: U DCT^-1[c1] + DCT^-1[c2]

Nearly all of c2 is rounded to 0, and only nonzero symbols are stored. The energy of c1 and c2 is that of x.

The scores of a view take several hundred MB, so no function makes a copy of all channels that it does not return.
Shapes: B batch, K score channels, R directions, (H, W) a level's grid, (H4, W4) the same in whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.tokens import find_nonzero
from pipeline.codecs.frs.transform import dct, to_blocks

PART = 512  # channels that are transformed together
ROWS = 1 << 12  # nonzero coefficients that are compared with the directions together


def has_channel_planes(tables: Mapping[str, np.ndarray], what: str) -> bool:
    """Return whether the planes of 'feature' or 'score' include those of single channels.

    Caches of older versions have none. Tables without expected sizes are being fitted, and have them if directions are
    missing.
    """
    if what != "score":
        return False
    width, rank = tables["score_basis"].shape
    return rank < width if "score_expected" not in tables else tables["score_expected"].shape[1] > rank


def most_planes(tables: Mapping[str, np.ndarray]) -> int:
    """Return the number of planes of the tensor that has most."""
    bases = {name.removesuffix("_basis"): table for name, table in tables.items() if name.endswith("_basis")}
    return max(basis.shape[-1] + len(basis) * has_channel_planes(tables, what) for what, basis in bases.items())


def project(basis: Tensor, residual: Tensor) -> Tensor:
    """Return the coefficients (B, R + K, H4, W4) of a weighted residual (B, K, H, W). basis: (K, R)."""
    size, rank = residual.shape[2:], basis.shape[1]
    rotated = torch.matmul(basis.T, residual.flatten(2))  # each sample alone, so that its batch does not matter
    directions = dct(to_blocks(rotated.unflatten(2, size)))
    out = directions.new_empty((len(residual), rank + len(basis), *directions.shape[2:]))
    out[:, :rank] = directions
    for part in _parts(len(basis)):
        left = residual[:, part] - torch.matmul(basis[part], rotated).unflatten(2, size)
        out[:, rank:][:, part] = dct(to_blocks(left))
    return out


def unproject(basis: Tensor, coefficients: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the weighted residual (B, K, H, W) of coefficients (B, R + K, H4, W4). Inverse of `project`."""
    (height, width), rank = size, basis.shape[1]
    rotated = dct(coefficients[:, :rank], inverse=True)[..., :height, :width]
    out = torch.matmul(basis, rotated.flatten(2)).unflatten(2, size)
    for part in _parts(len(basis)):
        out[:, part] += dct(coefficients[:, rank:][:, part], inverse=True)[..., :height, :width]
    return out


def overlap(basis: Tensor, scaled: Tensor, rounded: Tensor) -> float:
    """Return by how much the error of x exceeds that of its coefficients (B, R + K, H4, W4), as energies.

    With errors d1 and d2, x has the error U d1 + d2, whose energy is |d1|^2 + |d2|^2 + 2 <U d1, d2>. U^T c2 is 0, so d2
    can be replaced by the rounded c2, of which few are not 0.
    """
    planes, spots, rank = rounded.shape[1], rounded[0, 0].numel(), basis.shape[1]
    at = find_nonzero(rounded.flatten())
    plane = torch.div(at, spots, rounding_mode="floor") % planes
    at, channel = at[plane >= rank], plane[plane >= rank] - rank
    values, total = rounded.flatten().index_select(0, at), 0.0
    sample = torch.div(at, planes * spots, rounding_mode="floor")
    for n, k, spot, value in zip(*(column.split(ROWS) for column in (sample, channel, at % spots, values))):
        own, exact = (each.flatten(2)[n, :rank, spot] for each in (rounded, scaled))
        total += float((((own - exact) * basis.index_select(0, k)).sum(dim=1) * value).double().sum())
    return 2 * total


def _parts(channels: int) -> Iterator[slice]:
    return (slice(first, first + PART) for first in range(0, channels, PART))
