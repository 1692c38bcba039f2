"""The FRS-weighted codec: what the loss weights by m is stored with a precision that follows m.

With m the decoded FRS map, S_l its sum over level l, U a KLT basis and mu / t0 the means given (level, bucket of m):

    features   q = rint( DCT4x4[ U_l^T sqrt(m) (y - mu_l) ] / D_l )
    scores     q = rint( DCT4x4[ U^T sqrt(m) (sqrt(t) - sqrt(t0_l)) ] / D_l ),   t = u |u| after decoding u
    D_l = step * S_l^0.5 * (sum_l S_l)^-0.3,   steps: chosen for `quality`, the gradient error of each loss on a probe

The feature loss is plain squared error between sqrt(m) y and sqrt(m) a, so that is what is transformed; a cache of the
`universal` profile serves losses that do not weigh by m, and puts 1 for m in the line of the features. The symbols q
are stored as tokens in the order of their expected size (tokens.py). Decoding runs on the training device; the host
only checks crcs and runs zstd. u |u| is not clipped to [0, m]: that would bias the sum over neighbours.
docs/format.md has the same in 60 lines of numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.arrays import ArraySpec
from pipeline.codecs.base import CalibrationSample, Codec
from pipeline.codecs.frs.fit import fit
from pipeline.codecs.frs.map import BUCKETS, BatchMaps, CodedMap, check_map
from pipeline.codecs.frs.settings import PROFILES
from pipeline.codecs.frs.tokens import (
    FREQUENCIES,
    check_tokens,
    from_groups,
    from_tokens,
    symbol_order,
    to_groups,
    to_tokens,
)
from pipeline.codecs.frs.transform import BLOCK, dct, steps, to_blocks
from pipeline.codecs.packing import Sample, on_canvas, positions
from pipeline.errors import CodecError, CorruptCache
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput, canvas

TINY = torch.finfo(torch.float32).tiny
Levels = list[Tensor]


class Frs(Codec):
    """int32 tokens `features` and `scores`, as many as a sample needs; the map `frs` (L + P,) in uint8."""

    name = "frs"
    ragged = True

    def __init__(self, settings: dict[str, Any], tables: dict[str, np.ndarray]) -> None:
        super().__init__(settings, tables)
        self._cache: dict[str, dict[str, Tensor]] = {}

    def calibrate(self, sample: CalibrationSample) -> None:
        fit(self, sample)

    def validate(self) -> None:
        super().validate()
        levels = len(self.tables["feature_basis"])
        for what, width in zip(self.kinds, (self.channels, self.score_channels)):
            rank = self.tables[f"{what}_basis"].shape[-1]
            shapes = {
                "basis": (levels, width, rank) if what == "feature" else (width, rank),
                "mean": (levels, BUCKETS, width), "expected": (levels, rank, FREQUENCIES),
            }  # fmt: skip
            for name, shape in shapes.items():
                table = self.tables[f"{what}_{name}"]
                if not np.isfinite(table).all():
                    raise ValueError(f"table {what}_{name}: holds NaN or infinity")
                if table.shape != shape:
                    raise ValueError(f"table {what}_{name}: expected shape {shape}, found {table.shape}")
        if not (
            1 <= int(self.settings["map_top"]) <= 255
            and all(0 < float(step) < np.inf for step in self.steps().values())
        ):
            raise ValueError("settings map_top, feature_step or score_step out of range")
        if self.settings.get("profile", "frs") not in PROFILES:
            raise ValueError(f"profile {self.settings['profile']!r} is not known here")

    def __getstate__(self) -> dict[str, Any]:
        """Without what lies on a device: a worker process that is spawned checks samples and decodes none."""
        return {**self.__dict__, "_cache": {}}

    def use(self, tables: dict[str, np.ndarray]) -> None:
        """Take these tables from now on."""
        self.tables = tables
        self._cache.clear()

    def steps(self) -> dict[str, float]:
        return {what: self.settings[f"{what}_step"] for what in self.kinds}

    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Sample] = ()) -> list[ArraySpec]:
        zstd = self.settings["zstd"]
        tokens = {f"{what}s": max([1, *(len(sample[f"{what}s"]) for sample in samples)]) for what in self.kinds}
        return [
            *(ArraySpec(name, (count,), "int32", ("token",), zstd) for name, count in tokens.items()),
            ArraySpec("frs", (len(levels[0]) + max(map(positions, levels)),), "uint8", ("byte",), zstd),
        ]

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if str(device) not in self._cache:
            self._cache[str(device)] = {k: torch.from_numpy(v).to(device) for k, v in self.tables.items()}
        return self._cache[str(device)]

    def code(self, output: TeacherOutput) -> BatchMaps:
        top = self.settings["map_top"]
        samples = [CodedMap.encode([m[b] for m in output.frs], top) for b in range(len(output.frs[0]))]
        return BatchMaps(samples, output.levels)

    def weights(self, what: str, maps: BatchMaps) -> BatchMaps:
        """What a position counts: its m, or 1 for the features of the universal profile."""
        universal = what == "feature" and self.settings.get("profile") == "universal"
        return maps.everywhere() if universal else maps

    def step_sizes(self, what: str, maps: BatchMaps, step: float | None = None) -> Levels:
        """D_l (B, 1, 1, 1) of every level; `step`: one to try in the place of the codec's own."""
        return steps(self.weights(what, maps).floats, self.settings[f"{what}_step"] if step is None else step)

    def _basis(self, what: str, level: int, device: torch.device) -> Tensor:
        """(X, R); features have one for each level, scores one for all."""
        basis = self._on(device)[f"{what}_basis"]
        return basis[level] if basis.dim() == 3 else basis

    def _mean(self, what: str, level: int, maps: BatchMaps) -> Tensor:
        """(B, X, H, W) what the map alone lets one expect."""
        buckets = maps.buckets[level]
        return self._on(buckets.device)[f"{what}_mean"][level][buckets].movedim(-1, 1)

    def coefficients(self, output: TeacherOutput, maps: BatchMaps, what: str) -> tuple[Levels, Levels]:
        """Of every level: (B, R, H4, W4) before quantisation; (B,) squared norm of the residual they stand for."""
        planes, energy = [], []
        for level, (m, value) in enumerate(zip(self.weights(what, maps).floats, output.values(what))):
            plain = value.float() if what == "feature" else value.float().sqrt()
            residual = m.sqrt()[:, None] * (plain - self._mean(what, level, maps))
            rotated = torch.einsum("cr,bchw->brhw", self._basis(what, level, m.device), residual)
            planes.append(dct(to_blocks(rotated)))
            energy.append(residual.square().sum(dim=(1, 2, 3)))
        return planes, energy

    def rounded(self, exact: Levels, maps: BatchMaps, what: str, step: float) -> Levels:
        """What decoding gives for these coefficients with this step."""
        sizes = self.step_sizes(what, maps, step)
        return self._rebuild([torch.round(c / d) * d for c, d in zip(exact, sizes)], maps, what)

    def _rebuild(self, planes: Levels, maps: BatchMaps, what: str) -> Levels:
        """Coefficients times step, (B, R, H4, W4) of every level -> what the teacher said."""
        out = []
        for level, (coefficients, m) in enumerate(zip(planes, self.weights(what, maps).floats)):
            blocks = dct(coefficients, inverse=True)[..., : m.shape[1], : m.shape[2]]
            residual = torch.einsum("cr,brhw->bchw", self._basis(what, level, m.device), blocks)
            # Where m = 0 nothing was coded (and nothing is asked): the mean stands.
            root = m.sqrt()[:, None]
            strength = torch.where(root > 0, 1 / root.clamp_min(TINY), 0.0)
            value = torch.addcmul(self._mean(what, level, maps), residual, strength)
            out.append(value if what == "feature" else value * value.abs())
        return out

    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        self.check(output)
        maps, tables = self.code(output), self._on(output.frs[0].device)
        samples: list[Sample] = [{"frs": coded.to_bytes().cpu().numpy()} for coded in maps.samples]
        errors = {}
        for what in self.kinds:
            exact, energy = self.coefficients(output, maps, what)
            step = self.step_sizes(what, maps)
            scaled = [c / d for c, d in zip(exact, step)]
            rounded = [torch.round(c) for c in scaled]
            # By Parseval; what the planes left out hold is lost as well.
            lost = sum(float((q - c).square().sum() - c.square().sum()) for q, c in zip(rounded, scaled))
            total = sum(float((e / d.square().flatten()).sum()) for e, d in zip(energy, step))
            errors[f"{what}s_error"] = (max(0.0, total + lost) / total) ** 0.5 if total > 0 else 0.0
            for b, (sample, weight) in enumerate(zip(samples, self.weights(what, maps).samples)):
                order = symbol_order(tables[f"{what}_expected"], weight.whole())
                try:
                    tokens = to_tokens([to_groups(q[b]) for q in rounded], order)
                except CodecError as error:
                    raise CodecError(f"{what}s: {error}", sample=b) from error
                sample[f"{what}s"] = tokens.cpu().numpy()
        return samples, errors

    def check_sample(self, sample: Sample, levels: LevelShapes) -> None:
        if not {*(f"{what}s" for what in self.kinds), "frs"} <= sample.keys() or len(levels) != len(
            self.tables["feature_expected"]
        ):
            raise CorruptCache(f"arrays {sorted(sample)} on {len(levels)} FPN levels are not those of this codec")
        check_map(sample["frs"], levels)
        blocks = sum(h * w for h, w in (whole_blocks(*side) for side in levels))
        for what in self.kinds:
            try:
                check_tokens(sample[f"{what}s"], self.tables[f"{what}_expected"].shape[1] * blocks)
            except CorruptCache as error:
                raise CorruptCache(f"array {what}s: {error}") from error

    def coded_maps(self, batch: EncodedBatch) -> list[CodedMap]:
        """The map of every sample, still in whole numbers."""
        rows, top = batch.arrays["frs"], self.settings["map_top"]
        return [CodedMap.from_bytes(row, levels, top) for row, levels in zip(rows, batch.levels)]

    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        maps = BatchMaps(self.coded_maps(batch), canvas(batch.levels))
        out: dict[str, Levels] = {"score": []}
        for what in self.kinds:
            steps = self.step_sizes(what, maps)
            planes = [q * d for q, d in zip(self.symbols(batch, maps, what), steps)]
            out[what] = self._rebuild(planes, maps, what)
        return TeacherOutput(out["feature"], out["score"], maps.floats, batch.levels)

    def symbols(self, batch: EncodedBatch, maps: BatchMaps, what: str) -> Levels:
        """[(B, R, H4, W4)] the whole numbers that the tokens stand for."""
        expected = self._on(batch.arrays["frs"].device)[f"{what}_expected"]
        decoded = []
        for tokens, weight in zip(batch.arrays[f"{what}s"], self.weights(what, maps).samples):
            sides = [whole_blocks(*c.shape) for c in weight.codes]
            shapes = [(expected.shape[1], FREQUENCIES, h * w // FREQUENCIES) for h, w in sides]
            groups = from_tokens(tokens, symbol_order(expected, weight.whole()), shapes)
            decoded.append([from_groups(g, *side) for g, side in zip(groups, sides)])
        sizes = [whole_blocks(*size) for size in canvas(batch.levels)]
        return [on_canvas([d[i] for d in decoded], size) for i, size in enumerate(sizes)]


def whole_blocks(height: int, width: int) -> tuple[int, int]:
    return -(-height // BLOCK) * BLOCK, -(-width // BLOCK) * BLOCK
