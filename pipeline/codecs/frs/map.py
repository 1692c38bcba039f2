"""The FRS map, coded with one byte per position and one byte per level.

Both losses divide by the map's sum over a level, so the map is coded relative to its level. Each level has an exponent
s, the octave of its maximum, and m = 2^-s (c / top)^4 for codes c = 0..top. `top` depends on the requested quality.

A single absolute grid down to 2^-16 rounds levels without objects to zero. The gradient error of the features is then
23%. Relative to the level it is 0.2%, and 0.1% on this fourth-root grid (benchmarks/ablation.py). The fourth root gives
most codes to large values, but does not round wide weak areas to zero, as a linear or square-root grid does.

Encoder and decoder both use the decoded map for weights, buckets and level sums. The stored bytes are differences to
the neighbours above and left, which saves a quarter of the bytes.
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
EMPTY = 255  # exponent of a level whose map is zero at all positions
DEEPEST = 120  # largest exponent
TINIEST = 2.0**-DEEPEST  # smaller values lose bits in float32
BUCKETS = 49  # bucket 0: m = 0; buckets 1 to 48: half octaves below 1, weakest first
UNIT = 2**30  # value of 1.0 when (c / top)^4 is an integer, for sums that are equal on every device


def map_top(quality: float) -> int:
    """Return the largest code for a target gradient error, of which the map causes less than a third."""
    return int(np.clip(round(40 * (0.1 / quality) ** 0.75), 16, 255))


@dataclass
class CodedMap:
    """The map of one sample: uint8 codes [(H_l, W_l)], uint8 exponents (L,), and the largest code.

    Decoding never copies a value to the host, because it would wait for the device (tests/codecs/test_device.py).
    """

    codes: list[Tensor]
    exponents: Tensor
    top: int

    @classmethod
    def encode(cls, maps: Sequence[Tensor], top: int) -> CodedMap:
        """Encode maps [(H_l, W_l)] in [0, 1]."""
        exponents = octaves(torch.stack([m.max() for m in maps]))
        codes = [torch.round(code).to(torch.uint8) for code in unrounded(maps, exponents, top)]
        return cls(codes, exponents, top)

    @classmethod
    def from_bytes(cls, row: Tensor, levels: LevelShapes, top: int) -> CodedMap:
        """Read a map from the start of `row`. Inverse of `to_bytes`. Raise CorruptCache where the row is too short."""
        if len(row) < len(levels) + positions(levels):
            raise CorruptCache(
                f"map: expected {len(levels) + positions(levels)} bytes for grids {levels}, found {len(row)}"
            )
        codes, at = [], len(levels)
        for h, w in levels:
            codes.append(restore(row[at : at + h * w].reshape(h, w)))
            at += h * w
        return cls(codes, row[: len(levels)], top)

    def to_bytes(self) -> Tensor:
        """Return (L + P,) uint8: the exponents, then the differences of every level, row by row."""
        return torch.cat([self.exponents, *(difference(c).flatten() for c in self.codes)])

    def floats(self) -> list[Tensor]:
        """Return m as [(H_l, W_l)] float32, from a table, so the bits are equal on every device."""
        return self._look_up("float")

    def integers(self) -> list[Tensor]:
        """Return m 2^s as [(H_l, W_l)] int64 in units of 2^-30. Their sums are equal on every device."""
        table = _table("integer", self.top, self.exponents.device)
        return [table[c.long()] for c in self.codes]

    def buckets(self) -> list[Tensor]:
        """Return the half octave of m as [(H_l, W_l)] int64 in [0, BUCKETS)."""
        return self._look_up("bucket")

    def _look_up(self, what: str) -> list[Tensor]:
        """Return the value of each code, given its level's exponent."""
        tables = _table(what, self.top, self.exponents.device)[self.exponents.long()]
        return [table[c.long()] for table, c in zip(tables, self.codes)]


def check_map(row: np.ndarray, levels: LevelShapes) -> None:
    """Raise CorruptCache where these bytes do not start with a map of such grids."""
    if row.ndim != 1 or row.dtype != np.uint8 or len(row) < len(levels) + positions(levels):
        raise CorruptCache(f"map: expected uint8 bytes for grids {levels}, found {row.dtype} of shape {row.shape}")
    exponents = row[: len(levels)]
    if ((exponents > DEEPEST) & (exponents != EMPTY)).any():
        raise CorruptCache(f"map: expected exponents up to {DEEPEST}, found {exponents.tolist()}")


def octaves(largest: Tensor) -> Tensor:
    """Return uint8 s with 2^-(s+1) <= largest < 2^-s; 0 also for 1, and EMPTY for values below TINIEST."""
    exponents = torch.frexp(largest.float()).exponent.neg().clamp_min(0)
    return torch.where(largest < TINIEST, EMPTY, exponents).to(torch.uint8)


def unrounded(maps: Sequence[Tensor], exponents: Tensor, top: int) -> list[Tensor]:
    """Return the codes before rounding, [(H_l, W_l)] float64, for exponents (L,)."""
    scales = _octave_scale(exponents.device)[exponents.long()]
    return [top * (m.double() * scale).clamp(0, 1) ** (1 / POWER) for m, scale in zip(maps, scales)]


@lru_cache(maxsize=16)
def _octave_scale(device: torch.device) -> Tensor:
    """Return (256,) float64: 2^s of each exponent s, 0 for EMPTY."""
    scale = 2.0 ** np.arange(256)
    scale[EMPTY] = 0
    return torch.from_numpy(scale).to(device)


@lru_cache(maxsize=64)
def _table(what: str, top: int, device: torch.device) -> Tensor:
    """Return the value of each code, (256,) or (256, 256) by exponent. The table is copied to the device only once."""
    relative, exponents = _relative(top), np.arange(256)[:, None]
    if what == "integer":
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
    """Return (256,) float64: m 2^s of each code. Codes above `top`, which no encoder writes, are 1."""
    return (np.minimum(np.arange(256), top) / top) ** POWER


def difference(codes: Tensor) -> Tensor:
    """Return the differences c[y,x] - c[y,x-1] - c[y-1,x] + c[y-1,x-1] modulo 256 of (H, W) uint8 codes, as uint8."""
    c = torch.nn.functional.pad(codes.long(), (1, 0, 1, 0))
    return ((c[1:, 1:] - c[1:, :-1] - c[:-1, 1:] + c[:-1, :-1]) & 255).to(torch.uint8)


def restore(differences: Tensor) -> Tensor:
    """Return the codes of differences. Inverse of `difference`."""
    return (differences.long().cumsum(0).cumsum(1) & 255).to(torch.uint8)


class BatchMaps:
    """The decoded maps of a batch on a common canvas, [(B, H_l, W_l)], with zeros outside each sample's own grid."""

    def __init__(self, samples: list[CodedMap], levels: LevelShapes) -> None:
        self.samples, self._levels = samples, levels
        self._ones: BatchMaps | None = None
        self.floats, self.buckets = (
            [on_canvas([row[i] for row in rows], size) for i, size in enumerate(levels)]
            for rows in ([s.floats() for s in samples], [s.buckets() for s in samples])
        )

    def uniform(self) -> BatchMaps:
        """Return maps of the same grids with m = 1 at every position of a sample's own grid."""
        if self._ones is None:
            ones = [
                CodedMap([torch.full_like(c, s.top) for c in s.codes], torch.zeros_like(s.exponents), s.top)
                for s in self.samples
            ]
            self._ones = BatchMaps(ones, self._levels)
        return self._ones
