"""The FRS-weighted codec: what the loss weights by m is stored with a precision that follows m.

With m the decoded FRS map, S_l its sum over level l, U a KLT basis and mu / t0 the means given (level, bucket of m):

    features   q = rint( DCT4x4[ U_l^T sqrt(m) (y - mu_l) ] / D_l )
    scores     q = rint( DCT4x4[ U^T sqrt(m) (sqrt(t) - sqrt(t0_l)) ] / D_l ),   t = u |u| after decoding u
    D_l = step * S_l^0.5 * (sum_l S_l)^-0.3,   steps: chosen for `quality`, the gradient error of each loss on a probe

The feature loss is plain squared error between sqrt(m) y and sqrt(m) a, so that is what is transformed. The symbols q
are stored as tokens in the order of their expected size (symbols.py). Decoding runs on the training device; the host
only checks crcs and runs zstd. u |u| is not clipped to [0, m]: that would bias the sum over neighbours.
docs/format.md has the same in 60 lines of numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.arrays import ArraySpec
from pipeline.codec.base import CalibrationSample, Codec, Sample, first_channels, positions
from pipeline.codec.calibration import Statistics
from pipeline.codec.mapcode import CodedMap, map_top
from pipeline.codec.quality import QUALITIES, find_steps
from pipeline.codec.symbols import FREQUENCIES, from_groups, from_tokens, symbol_order, to_groups, to_tokens
from pipeline.codec.transform import BLOCK, dct, klt, steps, to_blocks
from pipeline.errors import CodecError
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput, canvas

TINY = torch.finfo(torch.float32).tiny
DROPPED = 1e-4  # share of the nonzero symbols that the planes left out may hold
START = [0.0003, 0.0012, 0.005, 0.02, 0.08]  # first steps tried, in units of the residual's rms norm


class Frs(Codec):
    """int32 tokens `features` and `scores`, as many as a sample needs; the map `frs` (L + P,) in uint8."""

    name = "frs"
    ragged = True

    def __init__(self, settings: dict[str, Any], tables: dict[str, np.ndarray]) -> None:
        super().__init__(settings, tables)
        self._cache: dict[str, dict[str, Tensor]] = {}

    def calibrate(self, sample: CalibrationSample) -> None:
        quality = self.settings["quality"]
        target = QUALITIES.get(quality, quality)
        self.settings["map_top"] = map_top(target)
        scales = self._learn_statistics(sample.outputs())
        self._set_steps(find_steps(lambda tried: self._errors(sample, tried), scales, START, target))
        self._learn_order(sample.outputs())
        self.settings["probe_error"] = self._errors(sample, [self._steps()], reported=True)[0]

    def _learn_statistics(self, outputs: Iterable[TeacherOutput]) -> dict[str, float]:
        """Means and bases of full rank. Returns the rms norm of both residuals."""
        statistics: Statistics | None = None
        for output in outputs:
            if statistics is None:
                self.settings.update(first_channels(output))
                self.channels, self.score_channels = output.features[0].shape[1], output.scores[0].shape[1]
                statistics = Statistics(len(output.features), self.channels, self.score_channels)
            self.check(output)
            maps = self._code(output)
            statistics.add(output, maps.floats, maps.buckets)
        if statistics is None:
            raise CodecError("calibration: no view of the sample could be read")
        feature_mean, feature_covs, score_mean, score_cov = statistics.result()
        solved = [klt(cov) for cov in feature_covs]
        basis, values = klt(score_cov)
        self._use({
            "feature_mean": feature_mean, "feature_basis": np.stack([vectors for vectors, _ in solved]),
            "score_mean": score_mean, "score_basis": basis,
        })  # fmt: skip
        energies = {"feature": np.mean([v.sum() for _, v in solved]), "score": values.sum() / len(solved)}
        energies = {what: energy / statistics.views for what, energy in energies.items()}
        return {what: float(energy) ** 0.5 or 1.0 for what, energy in energies.items()}

    def _use(self, tables: dict[str, np.ndarray]) -> None:
        self.tables = tables
        self._cache.clear()

    def _steps(self) -> dict[str, float]:
        return {what: self.settings[f"{what}_step"] for what in ("feature", "score")}

    def _set_steps(self, chosen: dict[str, float]) -> None:
        self.settings.update({f"{what}_step": step for what, step in chosen.items()})

    def _errors(
        self, sample: CalibrationSample, tried: list[dict[str, float]], reported: bool = False
    ) -> list[dict[str, float]]:
        """Mean gradient errors {'feature', 'score'} on the probe for every pair of steps."""
        sums = [dict.fromkeys(("feature", "score"), 0.0) for _ in tried]
        count = 0
        for output, measure in sample.probes(reported):
            count += 1
            maps = self._code(output)
            exact = self._coefficients(output, maps)
            for row, chosen in zip(sums, tried):
                for what, error in measure(self._rounded(exact, maps, chosen)).items():
                    row[what] += error
        if not count:
            raise CodecError("calibration: no view to probe; raise cache.calibration_views")
        return [{what: total / count for what, total in row.items()} for row in sums]

    def _rounded(self, exact: dict[str, list[Tensor]], maps: BatchMaps, chosen: dict[str, float]) -> TeacherOutput:
        """What decoding would give with these steps."""
        planes = {}
        for what, levels in exact.items():
            planes[what] = [torch.round(c / d) * d for c, d in zip(levels, steps(maps.floats, chosen[what]))]
        return self._rebuild(planes, maps)

    def _learn_order(self, outputs: Iterable[TeacherOutput]) -> None:
        """Expected size of every group of symbols; planes without nonzero symbols are dropped."""
        energy: dict[str, Any] = {"feature": 0.0, "score": 0.0}
        nonzero: dict[str, Any] = {"feature": 0.0, "score": 0.0}
        strength: Any = 0.0
        for output in outputs:
            maps = self._code(output)
            strength = strength + sum(np.array([float(w.sum()) for w in s.whole()]) for s in maps.samples)
            for what, levels in self._coefficients(output, maps).items():
                by_level: list[np.ndarray] = []
                count: Any = 0.0
                for i, (level, step) in enumerate(zip(levels, steps(maps.floats, self._steps()[what]))):
                    # Relative to the level's exponent, as the whole numbers are that stand for the map.
                    octaves = [2.0 ** min(s.exponents[i], 120) for s in maps.samples]
                    sizes = [to_groups(c).square().sum(dim=2).double() * o for c, o in zip(level, octaves)]
                    by_level.append(torch.stack(sizes).sum(dim=0).cpu().numpy())
                    count = count + (level.abs() > step / 2).sum(dim=(0, 2, 3)).double().cpu().numpy()
                energy[what], nonzero[what] = energy[what] + np.stack(by_level), nonzero[what] + count
        tables = dict(self.tables)
        for what in ("feature", "score"):
            total = np.cumsum(nonzero[what])
            rank = int(np.searchsorted(total, total[-1] * (1 - DROPPED))) + 1
            size = energy[what][:, :rank] / np.maximum(strength, 1.0)[:, None, None]
            expected = np.round(2 * np.log2(np.maximum(size, 1e-12 * max(size.max(), 1e-30))))
            tables[f"{what}_expected"] = expected.astype(np.int16)
            tables[f"{what}_basis"] = tables[f"{what}_basis"][..., :rank].copy()
            self.settings[f"{what}_rank"] = rank
        self._use(tables)

    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Sample] = ()) -> list[ArraySpec]:
        zstd = self.settings["zstd"]
        tokens = {name: max([1, *(len(sample[name]) for sample in samples)]) for name in ("features", "scores")}
        return [
            ArraySpec("features", (tokens["features"],), "int32", ("token",), zstd),
            ArraySpec("scores", (tokens["scores"],), "int32", ("token",), zstd),
            ArraySpec("frs", (len(levels[0]) + max(map(positions, levels)),), "uint8", ("byte",), zstd),
        ]

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if str(device) not in self._cache:
            self._cache[str(device)] = {k: torch.from_numpy(v).to(device) for k, v in self.tables.items()}
        return self._cache[str(device)]

    def _code(self, output: TeacherOutput) -> BatchMaps:
        top = self.settings["map_top"]
        samples = [CodedMap.encode([m[b] for m in output.frs], top) for b in range(len(output.frs[0]))]
        return BatchMaps(samples, output.levels)

    def _coefficients(self, output: TeacherOutput, maps: BatchMaps) -> dict[str, list[Tensor]]:
        """(B, R, H4, W4) of every level, before quantisation."""
        found: dict[str, list[Tensor]] = {"feature": [], "score": []}
        tables = self._on(output.frs[0].device)
        for level, (m, bucket) in enumerate(zip(maps.floats, maps.buckets)):
            root = m.sqrt()[:, None]
            values = {"feature": output.features[level].float(), "score": output.scores[level].float().sqrt()}
            for what, value in values.items():
                basis = tables[f"{what}_basis"]
                basis = basis[level] if basis.dim() == 3 else basis
                residual = root * (value - tables[f"{what}_mean"][level][bucket].movedim(-1, 1))
                found[what].append(dct(to_blocks(torch.einsum("cr,bchw->brhw", basis, residual))))
        return found

    def _rebuild(self, planes: dict[str, list[Tensor]], maps: BatchMaps) -> TeacherOutput:
        """Coefficients times step, (B, R, H4, W4) of every level -> what the teacher said."""
        tables = self._on(maps.floats[0].device)
        out: dict[str, list[Tensor]] = {what: [] for what in planes}
        for what, levels in planes.items():
            for level, (coefficients, m) in enumerate(zip(levels, maps.floats)):
                basis = tables[f"{what}_basis"]
                basis = basis[level] if basis.dim() == 3 else basis
                blocks = dct(coefficients, inverse=True)[..., : m.shape[1], : m.shape[2]]
                residual = torch.einsum("cr,brhw->bchw", basis, blocks)
                mean = tables[f"{what}_mean"][level][maps.buckets[level]].movedim(-1, 1)
                # Where m = 0 nothing was coded (and nothing is asked): the mean stands.
                root = m.sqrt()[:, None]
                out[what].append(mean + torch.where(root > 0, residual / root.clamp_min(TINY), 0.0))
        return TeacherOutput(out["feature"], [u * u.abs() for u in out["score"]], maps.floats)

    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        self.check(output)
        maps, tables = self._code(output), self._on(output.frs[0].device)
        samples: list[Sample] = [{"frs": coded.to_bytes().cpu().numpy()} for coded in maps.samples]
        errors = {}
        for what, exact in self._coefficients(output, maps).items():
            scaled = [c / d for c, d in zip(exact, steps(maps.floats, self._steps()[what]))]
            rounded = [torch.round(c) for c in scaled]
            lost = sum(float((q - c).square().sum()) for q, c in zip(rounded, scaled))
            kept = sum(float(c.square().sum()) for c in scaled)
            errors[f"{what}s_error"] = (lost / kept) ** 0.5 if kept > 0 else 0.0
            expected = tables[f"{what}_expected"]
            for b, sample in enumerate(samples):
                order = symbol_order(expected, maps.samples[b].whole())
                sample[f"{what}s"] = to_tokens([to_groups(q[b]) for q in rounded], order).cpu().numpy()
        return samples, errors

    def coded_maps(self, batch: EncodedBatch) -> list[CodedMap]:
        """The map of every sample, still in whole numbers."""
        rows = zip(batch.arrays["frs"], batch.levels)
        return [CodedMap.from_bytes(row, levels, self.settings["map_top"]) for row, levels in rows]

    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        own = self.coded_maps(batch)
        common = canvas(batch.levels)
        maps, tables, planes = BatchMaps(own, common), self._on(batch.arrays["frs"].device), {}
        for what in ("feature", "score"):
            expected, decoded = tables[f"{what}_expected"], []
            for tokens, sample in zip(batch.arrays[f"{what}s"], own):
                sides = [(_up(c.shape[0]), _up(c.shape[1])) for c in sample.codes]
                shapes = [(expected.shape[1], FREQUENCIES, h * w // FREQUENCIES) for h, w in sides]
                groups = from_tokens(tokens, symbol_order(expected, sample.whole()), shapes)
                decoded.append([from_groups(g, *side) for g, side in zip(groups, sides)])
            step = steps(maps.floats, self._steps()[what])
            sizes = [(_up(h), _up(w)) for h, w in common]
            planes[what] = [_on_canvas([d[i] for d in decoded], size) * step[i] for i, size in enumerate(sizes)]
        return self._rebuild(planes, maps)


class BatchMaps:
    """The decoded maps of a batch on its common canvas: floats and buckets [(B, H_l, W_l)], zeros beyond own grids."""

    def __init__(self, samples: list[CodedMap], levels: LevelShapes) -> None:
        self.samples = samples
        self.floats, self.buckets = (
            [_on_canvas([row[i] for row in rows], size) for i, size in enumerate(levels)]
            for rows in ([s.floats() for s in samples], [s.buckets() for s in samples])
        )


def _up(side: int) -> int:
    return -(-side // BLOCK) * BLOCK


def _on_canvas(samples: list[Tensor], size: tuple[int, ...]) -> Tensor:
    """[(..., H_b, W_b)] -> (B, ..., H, W), zeros beyond a sample's own grid."""
    if all(tuple(s.shape[-2:]) == tuple(size) for s in samples):
        return torch.stack(samples)
    whole = samples[0].new_zeros((len(samples), *samples[0].shape[:-2], *size))
    for row, sample in zip(whole, samples):
        row[..., : sample.shape[-2], : sample.shape[-1]] = sample
    return whole
