"""The FRS map in one byte a position and one a level.

Both losses divide by the map's sum over a level: what counts is the map RELATIVE to its level, so each level has an
exponent s, the octave of its maximum, and m = 2^-s (c / top)^4 for codes c = 0..top. Measured (benchmarks/ablation.py):
on one absolute grid down to 2^-16 levels where the teacher sees nothing fall off the grid, and the features' gradient
errs by 23%; relative to the level 0.2%, on this grid 0.1%. The fourth root spends the codes where the map is large but
never lets wide weak areas round to zero together, as a linear or square-root grid does. `top` follows the quality asked
for. Encoder and decoder both use the DECODED map for weights, buckets and level sums. Stored are differences to the
neighbours above and left: a quarter fewer bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.packing import on_canvas, positions
from pipeline.errors import CorruptCache
from pipeline.records import LevelShapes

POWER = 4
EMPTY = 255  # exponent of a level whose map is zero everywhere
DEEPEST = 120  # largest exponent
TINIEST = 2.0**-DEEPEST  # below, float32 loses bits
BUCKETS = 49  # 0: m = 0; then 48 half octaves below 1, weakest first
UNIT = 2**30  # of the whole numbers that stand for (c / top)^4 where every device must agree to the bit


def map_top(quality: float) -> int:
    """Largest code for a target gradient error; the map's own share then stays below a third of it."""
    return int(np.clip(round(40 * (0.1 / quality) ** 0.75), 16, 255))


@dataclass
class CodedMap:
    """The map of one sample: uint8 codes [(H_l, W_l)], exponents (L,) uint8 beside them, and the largest code.

    Nothing here asks the device for a value: decoding must not wait for it (tests/codecs/test_device.py).
    """

    codes: list[Tensor]
    exponents: Tensor
    top: int

    @classmethod
    def encode(cls, maps: Sequence[Tensor], top: int) -> CodedMap:
        """[(H_l, W_l)] in [0, 1] -> codes, rounded."""
        exponents = octaves(torch.stack([m.max() for m in maps]))
        codes = [torch.round(code).to(torch.uint8) for code in unrounded(maps, exponents, top)]
        return cls(codes, exponents, top)

    @classmethod
    def from_bytes(cls, row: Tensor, levels: LevelShapes, top: int) -> CodedMap:
        """Inverse of `to_bytes`; more bytes may follow. Raises CorruptCache where there are fewer."""
        if len(row) < len(levels) + positions(levels):
            raise CorruptCache(f"a sample's map has {len(row)} bytes, its FPN grids {levels} need more")
        codes, at = [], len(levels)
        for h, w in levels:
            codes.append(restore(row[at : at + h * w].reshape(h, w)))
            at += h * w
        return cls(codes, row[: len(levels)], top)

    def to_bytes(self) -> Tensor:
        """(L + P,) uint8: the exponents, then the differences of every level, row by row."""
        return torch.cat([self.exponents, *(difference(c).flatten() for c in self.codes)])

    def floats(self) -> list[Tensor]:
        """[(H_l, W_l)] float32, by table, so that every device gives the same bits."""
        return self._looked_up("float")

    def whole(self) -> list[Tensor]:
        """[(H_l, W_l)] int64: m 2^s in whole numbers of 2^-30, whose sums are the same on every device."""
        table = _table("whole", self.top, self.exponents.device)
        return [table[c.long()] for c in self.codes]

    def buckets(self) -> list[Tensor]:
        """[(H_l, W_l)] int64 in [0, BUCKETS): the half octave of m."""
        return self._looked_up("bucket")

    def _looked_up(self, what: str) -> list[Tensor]:
        """What every code stands for beside its level's exponent."""
        tables = _table(what, self.top, self.exponents.device)[self.exponents.long()]
        return [table[c.long()] for table, c in zip(tables, self.codes)]


def check_map(row: np.ndarray, levels: LevelShapes) -> None:
    """Raise CorruptCache unless these bytes hold the map of such grids; more may follow."""
    if row.ndim != 1 or row.dtype != np.uint8 or len(row) < len(levels) + positions(levels):
        raise CorruptCache(f"a map of {row.shape} {row.dtype}, its FPN grids {levels} need more")
    exponents = row[: len(levels)]
    if ((exponents > DEEPEST) & (exponents != EMPTY)).any():
        raise CorruptCache(f"exponents {exponents.tolist()} of a map, at most {DEEPEST} are written")


def octaves(largest: Tensor) -> Tensor:
    """uint8 s with 2^-(s+1) <= largest < 2^-s (0 also for 1); EMPTY for what float32 calls zero."""
    exponents = torch.frexp(largest.float()).exponent.neg().clamp_min(0)
    return torch.where(largest < TINIEST, EMPTY, exponents).to(torch.uint8)


def unrounded(maps: Sequence[Tensor], exponents: Tensor, top: int) -> list[Tensor]:
    """[(H_l, W_l)] float64 codes before they are rounded; exponents (L,)."""
    scales = _octave_scale(exponents.device)[exponents.long()]
    return [top * (m.double() * scale).clamp(0, 1) ** (1 / POWER) for m, scale in zip(maps, scales)]


@lru_cache(maxsize=16)
def _octave_scale(device: torch.device) -> Tensor:
    """(256,) float64 2^s of each exponent s, 0 for EMPTY."""
    scale = 2.0 ** np.arange(256)
    scale[EMPTY] = 0
    return torch.from_numpy(scale).to(device)


@lru_cache(maxsize=64)
def _table(what: str, top: int, device: torch.device) -> Tensor:
    """What each code stands for, (256,) or (256, 256) by exponent; kept on the device, where a copy would wait."""
    relative, exponents = _relative(top), np.arange(256)[:, None]
    if what == "whole":
        return torch.from_numpy(np.round(relative * UNIT).astype(np.int64)).to(device)
    if what == "float":
        scale = np.where(exponents == EMPTY, 0, np.float32(2) ** -exponents.astype(np.float32))
        return torch.from_numpy(relative.astype(np.float32) * scale.astype(np.float32)).to(device)
    with np.errstate(divide="ignore"):
        halves = np.floor(np.log2(relative) * 2 + 1e-9)
    buckets = np.clip(BUCKETS - 1 + halves - 2 * exponents, 1, BUCKETS - 1)
    buckets[:, 0] = 0
    return torch.from_numpy(buckets.astype(np.int64)).to(device)


def _relative(top: int) -> np.ndarray:
    """(256,) float64 m 2^s of each code; codes beyond the top, which no encoder writes, repeat 1."""
    return (np.minimum(np.arange(256), top) / top) ** POWER


def difference(codes: Tensor) -> Tensor:
    """(H, W) uint8 codes -> uint8 differences c[y,x] - c[y,x-1] - c[y-1,x] + c[y-1,x-1], modulo 256."""
    c = torch.nn.functional.pad(codes.long(), (1, 0, 1, 0))
    return ((c[1:, 1:] - c[1:, :-1] - c[:-1, 1:] + c[:-1, :-1]) & 255).to(torch.uint8)


def restore(differences: Tensor) -> Tensor:
    """Inverse of `difference`."""
    return (differences.long().cumsum(0).cumsum(1) & 255).to(torch.uint8)


class BatchMaps:
    """The decoded maps of a batch on its common canvas: floats and buckets [(B, H_l, W_l)], zeros beyond own grids."""

    def __init__(self, samples: list[CodedMap], levels: LevelShapes) -> None:
        self.samples, self._levels = samples, levels
        self._ones: BatchMaps | None = None
        self.floats, self.buckets = (
            [on_canvas([row[i] for row in rows], size) for i, size in enumerate(levels)]
            for rows in ([s.floats() for s in samples], [s.buckets() for s in samples])
        )

    def everywhere(self) -> BatchMaps:
        """The same grids with m = 1 at every position of a sample's own."""
        if self._ones is None:
            ones = [
                CodedMap([torch.full_like(c, s.top) for c in s.codes], torch.zeros_like(s.exponents), s.top)
                for s in self.samples
            ]
            self._ones = BatchMaps(ones, self._levels)
        return self._ones
