"""Quantise the box distributions of a GFL teacher for LD.

    q = rint( sqrt(m) (z - mean of z over a side's N bins) / step )

z: the logits. LD does not change when all logits of a side change by the same number, so their mean is left out. The
map m weights LD, so strong positions have fine steps, and most others zeros.

The error is that of LD's gradient on the student's logits, for a student that leaves MISSED of the distributions'
variance. The probes measure no losses on boxes, so it does not include what the student's layers make of it.

Shapes: B batch, L levels, N bins of a side, (H, W) grid of a level.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.items import Item
from pipeline.codecs.base import CalibrationSample
from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.map_values import inverse_root
from pipeline.codecs.frs.settings import FrsOptions
from pipeline.codecs.packing import Sample, pack, positions, unpack
from pipeline.errors import CodecError, CorruptCache
from pipeline.losses.ld import SIDES, TEMPERATURE
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput

LARGEST = 2**15 - 1
MISSED = 0.2  # as the stated student's share for the features
START, ROUNDS = 0.1, 4  # first step tried; the error is nearly proportional to the step
TINY = 1e-30


def scale_boxes(boxes: list[Tensor], maps: BatchMaps, step: float) -> list[Tensor]:
    """Return the logits (B, 4 N, H, W) of every level in units of the step, not rounded."""
    found = []
    for z, m in zip(boxes, maps.floats, strict=True):
        sides = z.float().unflatten(1, (SIDES, -1))
        found.append((sides - sides.mean(dim=2, keepdim=True)).flatten(1, 2) * m.sqrt()[:, None] / step)
    return found


def round_boxes(boxes: list[Tensor], maps: BatchMaps, step: float) -> list[Tensor]:
    """Return the whole numbers of every level. Raise CodecError, with the sample, where one is too large to store."""
    rounded = [scaled.round() for scaled in scale_boxes(boxes, maps, step)]
    for level, q in enumerate(rounded):
        largest = q.abs().flatten(1).amax(dim=1)
        if float(largest.max()) > LARGEST:
            raise CodecError(
                f"boxes: level {level}: value {float(largest.max()):.0f} beyond {LARGEST}; increase "
                "cache.codec.quality",
                sample=int(largest.argmax()),
            )
    return rounded


def restore_boxes(rounded: list[Tensor], maps: BatchMaps, step: float) -> list[Tensor]:
    """Return the logits, with the mean 0 for each side. They are 0 where the map is."""
    return [q * step * inverse_root(m)[:, None] for q, m in zip(rounded, maps.floats, strict=True)]


def to_unsigned(q: Tensor) -> Tensor:
    """Return 2q for q >= 0, else -2q - 1, as int32: small numbers of both signs have a high byte of 0."""
    q = q.to(torch.int32)
    return torch.where(q >= 0, 2 * q, -2 * q - 1)


def to_signed(z: Tensor) -> Tensor:
    """Return the numbers (int32) as float32. Inverse of `to_unsigned`."""
    return ((z >> 1) ^ -(z & 1)).float()


class BoxCoder(NamedTuple):
    """Codes the item `boxes` (P, 4 N) of a sample, in uint16. channels: 4 N; 0 where a cache has none."""

    channels: int
    step: float
    zstd_level: int

    def items(self) -> list[Item]:
        return [Item("boxes", "uint16", self.zstd_level, ("position", "box_channel"))] if self.channels else []

    def limits(self, levels: LevelShapes) -> dict[str, tuple[int, int]]:
        """Return the size of the item in bytes."""
        return {item.name: (2 * self.channels * positions(levels),) * 2 for item in self.items()}

    def encode(self, output: TeacherOutput, maps: BatchMaps, samples: list[Sample]) -> None:
        """Add the item to the samples of a batch."""
        if self.channels:
            rounded = pack(round_boxes(output.boxes, maps, self.step)).transpose(1, 2)
            rows: np.ndarray = to_unsigned(rounded).cpu().numpy().astype(np.uint16)
            for sample, row in zip(samples, rows):
                sample["boxes"] = row

    def check(self, sample: Sample, levels: LevelShapes) -> None:
        """Raise CorruptCache where `encode` never makes such an item. It is there."""
        for item in self.items():
            array, shape = sample[item.name], (positions(levels), self.channels)
            if array.dtype != np.uint16 or array.shape != shape:
                raise CorruptCache(f"array boxes: expected uint16 of shape {shape}, found {array.dtype} {array.shape}")

    def decode(self, batch: EncodedBatch, maps: BatchMaps) -> list[Tensor]:
        """Return the logits of every level; none where they are not stored."""
        return restore_boxes(self._rounded(batch), maps, self.step) if self.channels else []

    def compare(self, exact: TeacherOutput, stored: EncodedBatch, maps: BatchMaps) -> dict[str, float]:
        """Return the largest error divided by half a step, as `Codec.compare`; nothing where they are not stored."""
        if not self.channels:
            return {}
        pairs = zip(scale_boxes(exact.boxes, maps, self.step), self._rounded(stored))
        return {"boxes": max(float((z - q).abs().max()) for z, q in pairs) / 0.5}

    def _rounded(self, batch: EncodedBatch) -> list[Tensor]:
        numbers = batch.arrays["boxes"].view(torch.int16).int() & 0xFFFF  # few operations of torch accept uint16
        return unpack(to_signed(numbers).transpose(1, 2), batch.levels)


def fit_boxes(options: FrsOptions, map_top: int, sample: CalibrationSample) -> dict[str, Any]:
    """Return the settings of the box distributions; none without them. Raise CodecError."""
    if not options.boxes:
        return {}
    step = START
    for _ in range(ROUNDS):
        channels, error = measure(sample.outputs("choosing"), map_top, step)
        step *= options.allowed_error / max(error, TINY)
        if not 0 < error < float("inf"):
            raise CodecError("boxes: the teacher's distributions are the same everywhere; set cache.codec.boxes=False")
    step = float(f"{step:.4g}")
    _, error = measure(sample.outputs("reported"), map_top, step)
    return {"box_channels": channels, "box_step": step, "box_error": error}


def measure(outputs: Iterable[TeacherOutput], map_top: int, step: float) -> tuple[int, float]:
    """Return the channels 4 N, and the relative error of LD's gradient on the stated student's logits."""
    channels, lost, total = 0, 0.0, 0.0
    for output in outputs:
        maps = BatchMaps.encode(output.frs, map_top)
        coded = restore_boxes(round_boxes(output.boxes, maps, step), maps, step)
        for exact, found, m in zip(output.boxes, coded, maps.floats):
            p, q = (torch.softmax(z.unflatten(1, (SIDES, -1)) / TEMPERATURE, dim=2) for z in (exact.float(), found))
            weight = (m / m.sum(dim=(1, 2), keepdim=True).clamp_min(TINY)).square()[:, None, None]
            mean = (weight * p).sum(dim=(3, 4), keepdim=True) / weight.sum(dim=(3, 4), keepdim=True).clamp_min(TINY)
            lost += float((weight * (q - p).square()).sum())
            total += float((weight * (p - mean).square()).sum())
            channels = exact.shape[1]
    return channels, (lost / (MISSED * total)) ** 0.5 if total > 0 else float("inf")
