"""The exact codec: float32 in, the same float32 out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.cache.arrays import ArraySpec
from pipeline.codec.base import CalibrationSample, Codec, Sample, pack, positions, unpack
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

    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Sample] = ()) -> list[ArraySpec]:
        p, zstd = max(positions(sample) for sample in levels), self.settings["zstd"]
        return [
            ArraySpec("features", (p, self.channels), "float32", ("position", "channel"), zstd),
            ArraySpec("scores", (p, self.score_channels), "float32", ("position", "score_channel"), zstd),
            ArraySpec("frs", (p,), "float32", ("position",), zstd),
        ]

    def check_sample(self, sample: Sample, levels: LevelShapes) -> None:
        widths = {"features": (self.channels,), "scores": (self.score_channels,), "frs": ()}
        for name, width in widths.items():
            array = sample.get(name)
            if array is None or array.dtype != np.float32 or array.shape[1:] != width or len(array) < positions(levels):
                raise CorruptCache(f"array {name}: not one of {width} numbers for each position of {levels}")
            if not np.isfinite(array).all():
                raise CorruptCache(f"array {name}: holds NaN or infinity")

    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        self.check(output)
        features = pack(output.features).transpose(1, 2).float().cpu().numpy()
        scores = pack(output.scores).transpose(1, 2).float().cpu().numpy()
        frs = pack([m[:, None] for m in output.frs])[:, 0].float().cpu().numpy()
        samples = [{"features": f, "scores": s, "frs": m} for f, s, m in zip(features, scores, frs)]
        return samples, {"features_error": 0.0, "scores_error": 0.0}

    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        frs = unpack(batch.arrays["frs"][:, None], batch.levels)
        return TeacherOutput(
            unpack(batch.arrays["features"].transpose(1, 2), batch.levels),
            unpack(batch.arrays["scores"].transpose(1, 2), batch.levels),
            [level[:, 0] for level in frs],
            batch.levels,
        )
