"""The exact codec: float32 in, the same float32 out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pipeline.cache.arrays import ArraySpec
from pipeline.codecs.base import CalibrationSample, Codec
from pipeline.codecs.packing import Sample, pack, positions, unpack
from pipeline.errors import CodecError, CorruptCache
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput


class Lossless(Codec):
    """Features (P, C), scores (P, K) and FRS map (P,), all float32, behind byte shuffle and zstd."""

    name = "lossless"

    def calibrate(self, sample: CalibrationSample) -> None:
        first = next(sample.outputs("learning"), None)
        if first is None:
            raise CodecError("calibration: no view of the sample could be read")
        self.learn_channels(first)

    def gradient_error(self, loss: str) -> float:
        return 0.0

    def _columns(self) -> dict[str, tuple[int, str]]:
        """Width and name of the second axis of the arrays that have one."""
        wide = {"features": (self.channels, "channel"), "scores": (self.score_channels, "score_channel")}
        return {f"{what}s": wide[f"{what}s"] for what in self.kinds}

    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Sample] = ()) -> list[ArraySpec]:
        p, zstd = max(positions(sample) for sample in levels), self.settings["zstd"]
        wide = [
            ArraySpec(name, (p, width), "float32", ("position", axis), zstd)
            for name, (width, axis) in self._columns().items()
        ]
        return [*wide, ArraySpec("frs", (p,), "float32", ("position",), zstd)]

    def check_sample(self, sample: Sample, levels: LevelShapes) -> None:
        widths = {name: (width,) for name, (width, _) in self._columns().items()}
        for name, shape in {**widths, "frs": ()}.items():
            array = sample.get(name)
            if array is None or array.dtype != np.float32 or array.shape[1:] != shape or len(array) < positions(levels):
                raise CorruptCache(f"array {name}: not one of {shape} numbers for each position of {levels}")
            if not np.isfinite(array).all():
                raise CorruptCache(f"array {name}: holds NaN or infinity")

    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        self.check(output)
        arrays = {f"{what}s": pack(output.values(what)).transpose(1, 2).float().cpu().numpy() for what in self.kinds}
        arrays["frs"] = pack([m[:, None] for m in output.frs])[:, 0].float().cpu().numpy()
        samples = [dict(zip(arrays, rows)) for rows in zip(*arrays.values())]
        return samples, {f"{what}s_error": 0.0 for what in self.kinds}

    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        out: dict[str, list[Tensor]] = {"score": []}
        for what in self.kinds:
            out[what] = unpack(batch.arrays[f"{what}s"].transpose(1, 2), batch.levels)
        frs = [level[:, 0] for level in unpack(batch.arrays["frs"][:, None], batch.levels)]
        return TeacherOutput(out["feature"], out["score"], frs, batch.levels)
