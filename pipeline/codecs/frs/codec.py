"""The frs codec: tokens of the weighted transform (weighted.py), and the richness map with one byte per position.

The quantised coefficients are stored as tokens in the order of their expected size (tokens.py). Decoding runs on the
training device. The host only checks checksums and runs zstd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.budget import BUDGET
from pipeline.cache.arrays import ArraySpec
from pipeline.cache.items import Item
from pipeline.codecs.base import BlockTokens, CalibrationSample, Codec
from pipeline.codecs.frs.boxes import BoxCoder
from pipeline.codecs.frs.fit import fit
from pipeline.codecs.frs.locate import locate_tokens
from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.map_codes import check_map, unrounded
from pipeline.codecs.frs.order import SymbolOrder, Symbols
from pipeline.codecs.frs.settings import FrsCalibration, FrsOptions
from pipeline.codecs.frs.sparse import residuals
from pipeline.codecs.frs.tables import check_order, check_tables, order_bytes
from pipeline.codecs.frs.tokens import Ranked, check_tokens, from_tokens, rank_symbols, to_planes, tokens_of
from pipeline.codecs.frs.transform import BLOCK
from pipeline.codecs.frs.weighted import Levels, WeightedTransform, per_level
from pipeline.codecs.packing import Sample, positions
from pipeline.errors import CodecError, CorruptCache
from pipeline.losses.base import Loss
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput

TOKEN = 300  # bytes of a token while its symbol is found


@dataclass(frozen=True, eq=False)
class Frs(Codec):
    """Stores int32 tokens `features` and `scores`, of variable number, and the map `frs` (L + P,) in uint8.

    If requested, also `boxes` (P, 4 N) in uint16.
    """

    name = FrsOptions.type
    ragged = True
    options_type = FrsOptions
    calibration_type = FrsCalibration

    options: FrsOptions
    calibration: FrsCalibration

    @classmethod
    def calibrate(cls, options: FrsOptions, sample: CalibrationSample) -> Frs:
        return cls(options, *fit(options, sample))

    @cached_property
    def transform(self) -> WeightedTransform:
        calibration = self.calibration
        return WeightedTransform(calibration.map_top, self.options.profile, self.tables, calibration.level_channels)

    @property
    def allowed_error(self) -> float:
        return self.options.allowed_error

    def gradient_error(self, loss: str) -> float | None:
        return self.calibration.probe_error.get(loss)

    def serves(self, loss: Loss) -> bool:
        return self.options.profile in loss.profiles and loss.name in self.calibration.probe_error

    def coarser(self, factor: float) -> Frs:
        feature_step, score_step = self.calibration.feature_step, self.calibration.score_step
        calibration = replace(
            self.calibration,
            feature_step=factor * feature_step,
            score_step=None if score_step is None else factor * score_step,
        )
        return type(self)(self.options, calibration, self.tables)

    def validate(self) -> None:
        super().validate()
        if self.box_channels:
            self.calibration.step("box")
        levels = len(self.tables["feature_basis"])
        if len(self.widths(levels)) != levels:
            raise ValueError(f"settings.level_channels: expected {levels} levels, found {len(self.widths(levels))}")
        for what, width in zip(self.kinds, (self.channels, self.score_channels)):
            self.calibration.step(what)
            check_tables(self.tables, what, width)
        check_order(self.tables, self.kinds)

    def working_bytes(self, sample: Sample, levels: LevelShapes) -> int:
        tokens = sum(sample[f"{what}s"].nbytes for what in self.kinds)
        orders = sum(order_bytes(self.tables).values())
        return super().working_bytes(sample, levels) + orders + TOKEN * tokens // 4

    def items(self) -> list[Item]:
        zstd_level = self.options.zstd_level
        tokens = [Item(f"{what}s", "int32", zstd_level, ("token",)) for what in self.kinds]
        return [*tokens, Item("frs", "uint8", zstd_level, ("byte",)), *self.boxes.items()]

    @cached_property
    def boxes(self) -> BoxCoder:
        """What codes the box distributions; it does nothing where they are not stored."""
        step = self.calibration.step("box") if self.box_channels else 0.0
        return BoxCoder(self.box_channels, step, self.options.zstd_level)

    def symbols_of(self, what: str, levels: LevelShapes) -> int:
        """Return the number of symbols of a tensor on these grids."""
        blocks = sum(h * w for h, w in (pad_to_blocks(*side) for side in levels))
        return self.tables[f"{what}_expected"].shape[1] * blocks

    def size_limits(self, levels: LevelShapes) -> dict[str, tuple[int, int]]:
        """A token represents at least one symbol, so there are at most as many tokens as symbols."""
        most = {what: min(self.symbols_of(what, levels), BUDGET.tokens) for what in self.kinds}
        tokens = {f"{what}s": (0, 4 * count) for what, count in most.items()}
        return {**tokens, "frs": (len(levels) + positions(levels),) * 2, **self.boxes.limits(levels)}

    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Sample] = ()) -> list[ArraySpec]:
        if self.box_channels:
            raise CodecError("box distributions cannot be stored in format version 1; make a new cache")
        zstd_level = self.options.zstd_level
        tokens = {f"{what}s": max([1, *(len(sample[f"{what}s"]) for sample in samples)]) for what in self.kinds}
        return [
            *(ArraySpec(name, (count,), "int32", ("token",), zstd_level) for name, count in tokens.items()),
            ArraySpec("frs", (len(levels[0]) + max(map(positions, levels)),), "uint8", ("byte",), zstd_level),
        ]

    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        self.check(output)
        transform, maps = self.transform, self.transform.code_maps(output)
        samples: list[Sample] = [{"frs": row.cpu().numpy()} for row in maps.to_bytes()]
        errors = {}
        for what in self.kinds:
            exact, energy = transform.coefficients(output, maps, what)
            step = per_level(transform.step_sizes(what, maps, self.calibration.step(what)))
            scaled = [c.div_(d) for c, d in zip(exact, step)]
            rounded = [torch.round(c) for c in scaled]
            for sample, tokens in zip(samples, self.tokens(what, rounded, maps)):
                sample[f"{what}s"] = tokens
            # By Parseval's theorem. The energy of planes that are not kept is part of the error.
            lost = transform.overlap(what, scaled, rounded)
            lost += sum(float(q.sub_(c).square_().sum() - c.square_().sum()) for q, c in zip(rounded, scaled))
            total = sum(float((e / d.square().flatten()).sum()) for e, d in zip(energy, step))
            errors[f"{what}s_error"] = (max(0.0, total + lost) / total) ** 0.5 if total > 0 else 0.0
        self.boxes.encode(output, maps, samples)
        return samples, errors

    def tokens(self, what: str, rounded: Levels, maps: BatchMaps) -> list[np.ndarray]:
        """Return the tokens (T,) int32 of each sample's quantised coefficients [(B, R, H4, W4)]."""
        ranked = self.rank_symbols(what, rounded, self.transform.symbol_order(what, maps))
        return [row.cpu().numpy() for row in tokens_of(ranked)]

    def rank_symbols(self, what: str, rounded: Levels, order: SymbolOrder) -> Ranked:
        """Put quantised coefficients [(B, R, H4, W4)] in order. Raise CodecError."""
        try:
            return rank_symbols(rounded, order)
        except CodecError as error:
            raise CodecError(f"{what}s: {error}", sample=error.sample) from error

    def check_sample(self, sample: Sample, levels: LevelShapes) -> None:
        self.require_arrays(sample, levels)
        check_map(sample["frs"], levels)
        for what in self.kinds:
            try:
                check_tokens(sample[f"{what}s"], self.symbols_of(what, levels))
            except CorruptCache as error:
                raise CorruptCache(f"array {what}s: {error}") from error

    def require_arrays(self, sample: Sample, levels: LevelShapes) -> None:
        """Raise CorruptCache where an array is missing, or where the codec has another number of levels."""
        names = {*(f"{what}s" for what in self.kinds), "frs", *(item.name for item in self.boxes.items())}
        if not names <= sample.keys() or len(levels) != len(self.tables["feature_expected"]):
            raise CorruptCache(f"arrays {sorted(sample)} on {len(levels)} FPN levels do not fit this codec")
        self.boxes.check(sample, levels)

    def coded_maps(self, batch: EncodedBatch) -> BatchMaps:
        """Read the maps of a batch."""
        return BatchMaps.from_bytes(batch.arrays["frs"], batch.levels, batch.sides, self.calibration.map_top)

    def maps_of(self, sample: Sample, levels: LevelShapes) -> BatchMaps:
        """Read the map of one sample, as a batch of one."""
        row = torch.from_numpy(sample["frs"].copy())[None]
        return self.coded_maps(EncodedBatch({"frs": row}, (levels,), torch.tensor([levels])))

    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        maps = self.coded_maps(batch)
        out: dict[str, Levels] = {"score": []}
        for what, parts in self.residuals(batch, maps).items():
            out[what] = self.transform.add_mean(*parts, maps, what)
        boxes = self.boxes.decode(batch, maps)
        return TeacherOutput(out["feature"], out["score"], maps.floats, batch.levels, boxes)

    def residuals(self, batch: EncodedBatch, maps: BatchMaps) -> dict[str, tuple[Tensor, Tensor]]:
        """Read of each tensor the weighted residuals (B, N, 16, X), and a free tensor of that size."""
        parts, transform = [], self.transform
        for what, (symbols, values) in zip(self.kinds, self.symbols(batch, maps, self.kinds)):
            steps = transform.step_sizes(what, maps, self.calibration.step(what))
            scaled = values * steps.gather(1, maps.canvas.block_level[symbols.block])
            parts.append(transform.coefficients_of(symbols, scaled, what))
        return dict(zip(self.kinds, residuals(parts, maps.canvas)))

    def symbols(self, batch: EncodedBatch, maps: BatchMaps, kinds: Sequence[str]) -> list[tuple[Symbols, Tensor]]:
        """Read the symbols that the tokens of each tensor stand for, and their values (B, T)."""
        orders = self.transform.symbol_orders(kinds, maps)
        return from_tokens([batch.arrays[f"{what}s"] for what in kinds], orders)

    def planes(self, batch: EncodedBatch, maps: BatchMaps, what: str) -> Levels:
        """Read the quantised coefficients [(B, R, H4, W4)]."""
        ((symbols, values),) = self.symbols(batch, maps, [what])
        return to_planes(symbols, values, maps.canvas)

    def compare(self, exact: TeacherOutput, stored: EncodedBatch) -> dict[str, float]:
        """Allow an error of half a quantiser step for each coefficient, and half a code for each position of the map.

        Planes that are not kept are not compared. The stated gradient error includes them.
        """
        maps = self.coded_maps(stored)
        found = {}
        for what in self.kinds:
            wanted, _ = self.transform.coefficients(exact, maps, what)
            steps = per_level(self.transform.step_sizes(what, maps, self.calibration.step(what)))
            pairs = zip(wanted, steps, self.planes(stored, maps, what))
            found[f"{what}s"] = max(float((c / d - q).abs().max()) for c, d, q in pairs) / 0.5
        return {**found, "frs": self.compare_maps(exact, maps), **self.boxes.compare(exact, stored, maps)}

    @staticmethod
    def compare_maps(exact: TeacherOutput, maps: BatchMaps) -> float:
        """Return the largest difference between exact and stored maps, in half codes."""
        codes = zip(unrounded(exact.frs, maps.exponents, maps.top), maps.canvas.split(maps.codes))
        return max(float((code - c).abs().max()) for code, c in codes) / 0.5

    def block_tokens(self, what: str, sample: Sample, levels: LevelShapes) -> BlockTokens:
        maps = self.maps_of(sample, levels)
        tokens = torch.from_numpy(sample[f"{what}s"].copy())
        return locate_tokens(tokens, self.transform.symbol_order(what, maps), maps)


def pad_to_blocks(height: int, width: int) -> tuple[int, int]:
    """Round the sides of a grid up to multiples of BLOCK."""
    return -(-height // BLOCK) * BLOCK, -(-width // BLOCK) * BLOCK
