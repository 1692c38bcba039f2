"""Codes of a richness map, as an encoder computes them, and the check of their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.map_values import EMPTY, POWER
from pipeline.codecs.packing import positions
from pipeline.errors import CorruptCache
from pipeline.records import LevelShapes

DEEPEST = 120  # largest exponent
TINIEST = 2.0**-DEEPEST  # smaller values lose bits in float32


def map_top(quality: float) -> int:
    """Return the largest code for a target gradient error, of which the map causes less than a third."""
    return int(np.clip(round(40 * (0.1 / quality) ** 0.75), 16, 255))


def check_map(row: np.ndarray, levels: LevelShapes) -> None:
    """Raise CorruptCache where these bytes are not a map of such grids."""
    if row.ndim != 1 or row.dtype != np.uint8 or len(row) != len(levels) + positions(levels):
        raise CorruptCache(f"map: expected uint8 bytes for grids {levels}, found {row.dtype} of shape {row.shape}")
    exponents = row[: len(levels)]
    if ((exponents > DEEPEST) & (exponents != EMPTY)).any():
        raise CorruptCache(f"map: expected exponents up to {DEEPEST}, found {exponents.tolist()}")


def octaves(largest: Tensor) -> Tensor:
    """Return uint8 s with 2^-(s+1) <= largest < 2^-s; 0 also for 1, and EMPTY for values below TINIEST."""
    exponents = torch.frexp(largest.float()).exponent.neg().clamp_min(0)
    return torch.where(largest < TINIEST, EMPTY, exponents).to(torch.uint8)


def unrounded(maps: Sequence[Tensor], exponents: Tensor, top: int) -> list[Tensor]:
    """Return the codes of maps [(B, H_l, W_l)] before rounding, in float64, for exponents (B, L)."""
    scales = _octave_scale(exponents.device)[exponents.long()][..., None, None]
    return [top * (m.double() * scales[:, n]).clamp(0, 1) ** (1 / POWER) for n, m in enumerate(maps)]


@lru_cache(maxsize=16)
def _octave_scale(device: torch.device) -> Tensor:
    """Return (256,) float64: 2^s of each exponent s, 0 for EMPTY."""
    scale = 2.0 ** np.arange(256)
    scale[EMPTY] = 0
    return torch.from_numpy(scale).to(device)


def difference(codes: Tensor) -> Tensor:
    """Return c[y,x] - c[y,x-1] - c[y-1,x] + c[y-1,x-1] modulo 256 of (B, H, W) uint8 codes, as uint8."""
    c = torch.nn.functional.pad(codes.long(), (1, 0, 1, 0))
    return ((c[:, 1:, 1:] - c[:, 1:, :-1] - c[:, :-1, 1:] + c[:, :-1, :-1]) & 255).to(torch.uint8)
