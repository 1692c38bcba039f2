"""The lossless codec: decoded values equal the teacher's float32 values exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from pipeline.cache.arrays import ArraySpec
from pipeline.cache.items import Item
from pipeline.codecs.base import CalibrationSample, Codec, channels_of, level_channels_of
from pipeline.codecs.packing import Sample, narrow, pack, positions, unpack
from pipeline.codecs.settings import CodecOptions, check_widths
from pipeline.errors import CodecError, CorruptCache
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput

SAME_DIGITS = 1e-5  # difference of float32 sums between two machines, relative to a tensor's largest value


@dataclass(frozen=True)
class LosslessOptions(CodecOptions):
    """Options of the lossless codec."""

    type: ClassVar[str] = "lossless"


@dataclass(frozen=True)
class LosslessCalibration:
    """Channels of the teacher's outputs, as in `Calibration`. `box_channels`: None without boxes."""

    channels: int = field(metadata={"at_least": 1})
    score_channels: int = field(metadata={"at_least": 0})
    level_channels: list | None = field(default=None, metadata={"check": check_widths})
    box_channels: int | None = field(default=None, metadata={"at_least": 4})


class Lossless(Codec):
    """Stores features (P, C), scores (P, K), richness map (P,) and, if requested, boxes (P, 4 N) as float32.

    In levels with fewer than C channels, zeros follow the features.
    """

    name = LosslessOptions.type
    options_type = LosslessOptions
    calibration_type = LosslessCalibration

    options: LosslessOptions
    calibration: LosslessCalibration

    @classmethod
    def calibrate(cls, options: LosslessOptions, sample: CalibrationSample) -> Lossless:
        first = next(sample.outputs("learning"), None)
        if first is None:
            raise CodecError("calibration: no view of the sample could be read; check the images of the data set")
        boxes = first.boxes[0].shape[1] if options.boxes else None
        return cls(
            options, LosslessCalibration(*channels_of(first, options.kinds), level_channels_of(first), boxes), {}
        )

    def _columns(self) -> dict[str, tuple[int, str]]:
        """Return the size and name of the second axis, for the arrays that have one."""
        wide = {"features": (self.channels, "channel"), "scores": (self.score_channels, "score_channel")}
        return {f"{what}s": wide[f"{what}s"] for what in self.kinds}

    def items(self) -> list[Item]:
        zstd_level = self.options.zstd_level
        wide = [Item(name, "float32", zstd_level, ("position", axis)) for name, (_, axis) in self._columns().items()]
        boxes = [Item("boxes", "float32", zstd_level, ("position", "box_channel"))] if self.box_channels else []
        return [*wide, Item("frs", "float32", zstd_level, ("position",)), *boxes]

    def _widths(self) -> dict[str, int]:
        """Return the size of the second axis, for the arrays that have one."""
        boxes = {"boxes": self.box_channels} if self.box_channels else {}
        return {name: width for name, (width, _) in self._columns().items()} | boxes

    def size_limits(self, levels: LevelShapes) -> dict[str, tuple[int, int]]:
        widths = self._widths() | {"frs": 1}
        return {name: (4 * width * positions(levels),) * 2 for name, width in widths.items()}

    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Sample] = ()) -> list[ArraySpec]:
        p, zstd_level = max(positions(sample) for sample in levels), self.options.zstd_level
        wide = [
            ArraySpec(name, (p, width), "float32", ("position", axis), zstd_level)
            for name, (width, axis) in self._columns().items()
        ]
        return [*wide, ArraySpec("frs", (p,), "float32", ("position",), zstd_level)]

    def check_sample(self, sample: Sample, levels: LevelShapes) -> None:
        if len(self.widths(len(levels))) != len(levels):
            raise CorruptCache(f"a sample has {len(levels)} FPN levels, the codec {len(self.widths(len(levels)))}")
        widths = {name: (width,) for name, width in self._widths().items()}
        for name, shape in {**widths, "frs": ()}.items():
            array = sample.get(name)
            if array is None or array.dtype != np.float32 or array.shape != (positions(levels), *shape):
                raise CorruptCache(f"array {name}: expected float32 of shape {shape} for each position of {levels}")
            if not np.isfinite(array).all():
                raise CorruptCache(f"array {name}: contains NaN or infinity")

    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        self.check(output)
        arrays = {f"{what}s": pack(output.values(what)).transpose(1, 2).float().cpu().numpy() for what in self.kinds}
        arrays["frs"] = pack([m[:, None] for m in output.frs])[:, 0].float().cpu().numpy()
        if self.box_channels:
            arrays["boxes"] = pack(output.boxes).transpose(1, 2).float().cpu().numpy()
        samples = [dict(zip(arrays, rows)) for rows in zip(*arrays.values())]
        return samples, {f"{what}s_error": 0.0 for what in self.kinds}

    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        out: dict[str, list[Tensor]] = {"score": []}
        for what in self.kinds:
            out[what] = unpack(batch.arrays[f"{what}s"].transpose(1, 2), batch.levels)
        frs = [level[:, 0] for level in unpack(batch.arrays["frs"][:, None], batch.levels)]
        features = narrow(out["feature"], self.calibration.level_channels)
        boxes = unpack(batch.arrays["boxes"].transpose(1, 2), batch.levels) if self.box_channels else []
        return TeacherOutput(features, out["score"], frs, batch.levels, boxes)

    def compare(self, exact: TeacherOutput, stored: EncodedBatch) -> dict[str, float]:
        """Compare exactly, except for the last digits, which differ between machines."""
        decoded, found = self.decode(stored), {}
        for name in (*self._widths(), "frs"):
            pairs = list(zip(getattr(decoded, name), getattr(exact, name)))
            largest = max(float(a.abs().max()) for _, a in pairs)
            found[name] = max(float((b - a).abs().max()) for b, a in pairs) / (SAME_DIGITS * largest or 1.0)
        return found
