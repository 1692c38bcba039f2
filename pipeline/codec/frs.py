"""The FRS-weighted codec: what the loss weights by m is stored with a precision that follows m.

With m the decoded FRS map, S_l its sum over level l, U a KLT basis and mu / t0 the means given (level, bucket of m):

    features   q = rint( DCT4x4[ U_l^T sqrt(m) (y - mu_l) ] / D_l )
    scores     q = rint( DCT4x4[ U^T sqrt(m) (sqrt(t) - sqrt(t0_l)) ] / D_l ),   t = u |u| after decoding u
    D_l = step * scale * S_l^0.5 * (sum_l S_l)^-0.3,   scale: rms norm of the residual in the calibration's sample

The feature loss is plain squared error between sqrt(m) y and sqrt(m) a, so that is what is transformed. Decoding runs
on the training device; the host only checks crcs and runs zstd. u |u| is not clipped to [0, m]: that would bias the
sum over neighbours. docs/format.md has the same in 40 lines of numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.arrays import ArraySpec
from pipeline.codec.base import Codec, Sample, first_channels, pack, positions, unpack
from pipeline.codec.calibration import Statistics
from pipeline.codec.mapcode import buckets, decode_map, encode_map
from pipeline.codec.transform import BLOCK, dct, klt, rank_of_energy, rms, steps, to_blocks, unzigzag, zigzag
from pipeline.errors import CodecError
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput


class Frs(Codec):
    """uint16 planes `features` (R, P4) and `scores` (R', P4), P4 = positions on sides rounded up to 4; uint8 `frs`."""

    name = "frs"

    def __init__(self, settings: dict[str, Any], tables: dict[str, np.ndarray]) -> None:
        super().__init__(settings, tables)
        self._cache: dict[str, dict[str, Tensor]] = {}

    def calibrate(self, outputs: Iterable[TeacherOutput]) -> None:
        statistics: Statistics | None = None
        for output in outputs:
            if statistics is None:
                self.settings.update(first_channels(output))
                self.channels, self.score_channels = output.features[0].shape[1], output.scores[0].shape[1]
                statistics = Statistics(len(output.features), self.channels, self.score_channels)
            self.check(output)
            statistics.add(output)
        if statistics is None:
            raise CodecError("calibration: no view of the sample could be read")
        energy = self.settings["energy"]
        feature_mean, feature_covs, score_mean, score_cov = statistics.result()
        solved = [klt(cov) for cov in feature_covs]
        basis, values = klt(score_cov)
        rank = max(rank_of_energy(v, energy) for _, v in solved)
        score_rank = min(self.settings["score_rank"], rank_of_energy(values, energy))
        self.tables = {
            "feature_mean": feature_mean,
            "feature_basis": np.stack([vectors[:, :rank] for vectors, _ in solved]),
            "score_mean": score_mean,
            "score_basis": basis[:, :score_rank].copy(),
        }
        self._cache.clear()
        self.settings["feature_scale"] = rms([values for _, values in solved])
        self.settings["score_scale"] = rms([values / len(solved)])
        self.settings["sample"] = {"views": statistics.views, "rank": rank, "score_rank": score_rank}

    def specs(self, levels: Sequence[LevelShapes]) -> list[ArraySpec]:
        p, p4 = max(map(positions, levels)), max(positions(sample, BLOCK) for sample in levels)
        rank, score_rank = self.tables["feature_basis"].shape[2], self.tables["score_basis"].shape[1]
        zstd = self.settings["zstd"]
        return [
            ArraySpec("features", (rank, p4), "uint16", ("plane", "position4"), zstd),
            ArraySpec("scores", (score_rank, p4), "uint16", ("plane", "position4"), zstd),
            ArraySpec("frs", (p,), "uint8", ("position",), zstd),
        ]

    def _step(self, what: str) -> float:
        return self.settings[f"{what}_step"] * self.settings[f"{what}_scale"]

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if str(device) not in self._cache:
            self._cache[str(device)] = {k: torch.from_numpy(v).to(device) for k, v in self.tables.items()}
        return self._cache[str(device)]

    def _coefficients(self, level: int, t: dict[str, Tensor], what: str, value: Tensor, codes: Tensor) -> Tensor:
        """(B, X, H, W) of one level -> (B, R, H4, W4) coefficients before quantisation."""
        mean, basis = t[f"{what}_mean"][level], t[f"{what}_basis"]
        basis = basis[level] if basis.dim() == 3 else basis
        root = decode_map(codes).sqrt()[:, None]
        residual = root * (value - mean[buckets(codes)].movedim(-1, 1))
        return dct(to_blocks(torch.einsum("cr,bchw->brhw", basis, residual)))

    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        self.check(output)
        codes = [encode_map(m) for m in output.frs]
        maps, tables = [decode_map(c) for c in codes], self._on(output.frs[0].device)
        values = {"feature": output.features, "score": [s.sqrt() for s in output.scores]}
        planes, errors = {}, {}
        for what, levels in values.items():
            step = steps(maps, self._step(what))
            exact = [self._coefficients(i, tables, what, v.float(), codes[i]) for i, v in enumerate(levels)]
            quantised = [torch.round(c / d) for c, d in zip(exact, step)]
            lost = sum(float((((q * d - c) / d) ** 2).sum()) for q, c, d in zip(quantised, exact, step))
            kept = sum(float(((c / d) ** 2).sum()) for c, d in zip(exact, step))
            errors[f"{what}s_error"] = (lost / kept) ** 0.5 if kept > 0 else 0.0
            planes[what] = zigzag(pack(quantised)).cpu().numpy().astype(np.uint16)
        frs = pack([c[:, None] for c in codes])[:, 0].cpu().numpy()
        rows = zip(planes["feature"], planes["score"], frs)
        return [{"features": f, "scores": s, "frs": m} for f, s, m in rows], errors

    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        codes = [level[:, 0] for level in unpack(batch.arrays["frs"][:, None], batch.levels)]
        maps = [decode_map(c) for c in codes]
        features = self._decode_planes("feature", batch, codes, maps)
        roots = self._decode_planes("score", batch, codes, maps)
        return TeacherOutput(features, [u * u.abs() for u in roots], maps)

    def _decode_planes(self, what: str, batch: EncodedBatch, codes: list[Tensor], maps: list[Tensor]) -> list[Tensor]:
        tables = self._on(codes[0].device)
        planes = unpack(unzigzag(batch.arrays[f"{what}s"]), batch.levels, BLOCK)
        out = []
        for level, (q, d) in enumerate(zip(planes, steps(maps, self._step(what)))):
            height, width = maps[level].shape[1:]
            basis = tables[f"{what}_basis"]
            basis = basis[level] if basis.dim() == 3 else basis
            residual = torch.einsum("cr,brhw->bchw", basis, dct(q * d, inverse=True)[..., :height, :width])
            mean = tables[f"{what}_mean"][level][buckets(codes[level])].movedim(-1, 1)
            # Where m = 0 nothing was coded (and nothing is asked): the mean stands.
            root = maps[level].sqrt()[:, None]
            out.append(mean + torch.where(root > 0, residual / root.clamp_min(1e-6), 0.0))
        return out
