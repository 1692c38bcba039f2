"""The frs2 codec: the frs codec with predictions of the levels and of the scores, and an entropy coder.

A sample has the arrays of frs. Its tokens are entropy-coded, which the host undoes, so that the device reads tokens as
those of frs. The map's bytes follow one byte of flags for each level, which says for the features and for the scores
whether the sample uses the prediction. Nothing that is parsed depends on a prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.budget import BUDGET
from pipeline.cache.arrays import ArraySpec
from pipeline.cache.items import Item
from pipeline.codecs.base import CalibrationSample
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.map_codes import check_map
from pipeline.codecs.frs.tables import check_table
from pipeline.codecs.frs.weighted import Levels
from pipeline.codecs.frs2.ans_model import AnsModel
from pipeline.codecs.frs2.ans_stream import decode, encode_symbols
from pipeline.codecs.frs2.ans_symbols import Symbols
from pipeline.codecs.frs2.classes import Histogram, class_sizes, group_histograms, key_histogram
from pipeline.codecs.frs2.fit import fit
from pipeline.codecs.frs2.predict_levels import TABLES as LEVEL_TABLES
from pipeline.codecs.frs2.predict_levels import level_shapes
from pipeline.codecs.frs2.predict_scores import TABLES as NET_TABLES
from pipeline.codecs.frs2.predict_scores import net_shapes
from pipeline.codecs.frs2.rebuild import Blocks, rebuild_features, rebuild_scores
from pipeline.codecs.frs2.settings import Frs2Options
from pipeline.codecs.frs2.transform import Coded, PredictedTransform, Stored
from pipeline.codecs.packing import Sample, narrow, positions
from pipeline.errors import CodecError, CorruptCache
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput

FLAGS = {"feature": 1, "score": 2}  # bit of each tensor in a level's byte of flags
SYMBOL_BYTES, SMALL = 9, 1 << 14  # more bytes than the entropy coder writes for a symbol, and for its states and counts


class Coder(NamedTuple):
    """The entropy coder of one tensor: its model, and the expected sizes of every level's groups."""

    model: AnsModel
    groups: list[Histogram]


@dataclass(frozen=True, eq=False)
class Frs2(Frs):
    """Stores the entropy-coded tokens `features` and `scores` in uint8, and `frs` (2L + P,) uint8: flags and map."""

    name = Frs2Options.type
    trained = True
    options_type = Frs2Options

    options: Frs2Options

    @classmethod
    def calibrate(cls, options: Frs2Options, sample: CalibrationSample) -> Frs2:  # type: ignore[override]
        return cls(options, *fit(options, sample))

    @cached_property
    def transform(self) -> PredictedTransform:
        calibration = self.calibration
        options, widths = self.options, calibration.level_channels
        return PredictedTransform(calibration.map_top, options.profile, self.tables, calibration.feature_step, widths)

    @cached_property
    def coders(self) -> dict[str, Coder]:
        """The entropy coder of each tensor."""
        return {
            what: Coder(AnsModel.from_tables(self.tables, what), group_histograms(self.tables[f"{what}_expected"]))
            for what in self.kinds
        }

    def validate(self) -> None:
        super().validate()
        for what in self.kinds:
            AnsModel.from_tables(self.tables, what)
        levels = len(self.tables["feature_basis"])
        shapes = {**level_shapes(levels, self.channels), **net_shapes(levels, self.channels, self.score_channels)}
        allowed = {"level_": self.options.predict_levels, "net_": self.options.predict_scores and self.options.scores}
        for prefix, known in (("level_", LEVEL_TABLES), ("net_", NET_TABLES)):
            found = [name for name in self.tables if name.startswith(prefix)]
            foreign = [name for name in found if name not in known or not allowed[prefix]]
            if foreign:
                raise ValueError(f"table {foreign[0]}: does not fit the settings")
            for name in known if found else ():
                check_table(self.tables, name, shapes[name])
                if self.tables[name].dtype != known[name]:
                    raise ValueError(f"table {name}: expected {known[name]}, found {self.tables[name].dtype}")

    def items(self) -> list[Item]:
        coded = [Item(f"{what}s", "uint8", None, ("byte",)) for what in self.kinds]
        return [*coded, Item("frs", "uint8", self.options.zstd_level, ("byte",)), *self.boxes.items()]

    def size_limits(self, levels: LevelShapes) -> dict[str, tuple[int, int]]:
        most = {what: min(self.symbols_of(what, levels), BUDGET.tokens) for what in self.kinds}
        coded = {f"{what}s": (1, SYMBOL_BYTES * count + SMALL) for what, count in most.items()}
        return {**coded, "frs": (2 * len(levels) + positions(levels),) * 2, **self.boxes.limits(levels)}

    def specs(self, levels: Sequence[LevelShapes], samples: Sequence[Sample] = ()) -> list[ArraySpec]:
        raise CodecError(f"codec {self.name}: cannot be stored in format version 1; make a new cache")

    def encode(self, output: TeacherOutput) -> tuple[list[Sample], dict[str, float]]:
        self.check(output)
        maps = self.transform.code_maps(output)
        coded = self._code(output, maps)
        flags = torch.stack([sum_flags(coded, level) for level in range(len(output.features))], dim=1)
        rows = torch.cat([flags, maps.to_bytes()], dim=1).cpu().numpy()
        samples: list[Sample] = [{"frs": row} for row in rows]
        errors = {}
        for what, one in coded.items():
            rounded = [c.round() for c in one.scaled]
            for sample, data in zip(samples, self._entropy_code(what, rounded, maps)):
                sample[f"{what}s"] = np.frombuffer(data, np.uint8)
            errors[f"{what}s_error"] = lost_share(one, rounded, self.transform.overlap(what, one.scaled, rounded))
        self.boxes.encode(output, maps, samples)
        return samples, errors

    def _entropy_code(self, what: str, rounded: Levels, maps: BatchMaps) -> Iterator[bytes]:
        """Yield the bytes of each sample's quantised coefficients [(B, R, H4, W4)]."""
        order, model = self.transform.symbol_order(what, maps), self.coders[what].model
        ranked = self.rank_symbols(what, rounded, order)
        columns = [part.cpu().split(ranked.counts) for part in (ranked.ranks, ranked.gaps, ranked.values)]
        keys, highest = order.key_counts().cpu().numpy(), int(self.tables[f"{what}_expected"].max())
        for counts, ranks, gaps, values in zip(keys, *columns):
            sizes = class_sizes(Histogram(highest, counts), model.top)
            symbols = Symbols.ranked(ranks.numpy(), gaps.numpy(), values.numpy(), sizes)
            yield encode_symbols(symbols, sizes, model)

    def _code(
        self, output: TeacherOutput, maps: BatchMaps, stored: dict[str, Stored] | None = None
    ) -> dict[str, Coded]:
        """Code each tensor. Decode only what predicts another one. stored: what to predict from, in place of that."""
        transform, step, given = self.transform, self.calibration.step, stored or {}
        network = "net_output" in self.tables
        features = transform.code_features(output, maps, step("feature"), stored=given.get("feature"), decode=network)
        if "score" not in self.kinds:
            return {"feature": features}
        predicted = transform.predict_scores(features.decoded, maps) if network else None
        scores = transform.code_scores(output, maps, step("score"), predicted, given.get("score"), decode=False)
        return {"feature": features, "score": scores}

    def coded_maps(self, batch: EncodedBatch) -> BatchMaps:
        rows = batch.arrays["frs"][:, len(batch.levels[0]) :]
        return BatchMaps.from_bytes(rows, batch.levels, batch.sides, self.calibration.map_top)

    def check_sample(self, sample: Sample, levels: LevelShapes) -> None:
        self.require_arrays(sample, levels)
        row = sample["frs"]
        flags = row[: len(levels)]
        if (
            row.dtype != np.uint8
            or row.ndim != 1
            or len(flags) < len(levels)
            or (flags & (255 - self._used_flags())).any()
        ):
            raise CorruptCache(f"array frs: expected a valid byte of flags for each of {len(levels)} levels")
        check_map(row[len(levels) :], levels)

    def read_sample(self, sample: Sample, levels: LevelShapes) -> Sample:
        """Check flags and map, and decode the entropy-coded bytes to tokens."""
        self.check_sample(sample, levels)
        found, sizes = dict(sample), self.class_sizes(sample["frs"], levels)
        for what in self.kinds:
            data = sample[f"{what}s"]
            try:
                if data.dtype != np.uint8 or data.ndim != 1:
                    raise CorruptCache(f"expected bytes, found {data.dtype} of shape {data.shape}")
                found[f"{what}s"] = decode(data.tobytes(), sizes[what], self.coders[what].model)
            except CorruptCache as error:
                raise CorruptCache(f"array {what}s: {error}") from error
        return found

    def class_sizes(self, row: np.ndarray, levels: LevelShapes) -> dict[str, np.ndarray]:
        """Return of each tensor the number of symbols of each class, for the array `frs` of one sample."""
        strengths = self.transform.strengths(row[len(levels) :], levels)
        return {
            what: class_sizes(key_histogram(coder.groups, strengths[what]), coder.model.top)
            for what, coder in self.coders.items()
        }

    def _used_flags(self) -> int:
        """Return the flags that a level can have."""
        return FLAGS["feature"] * ("level_in" in self.tables) + FLAGS["score"] * ("net_output" in self.tables)

    def decode(self, batch: EncodedBatch) -> TeacherOutput:
        maps, transform, scores = self.coded_maps(batch), self.transform, list[Tensor]()
        stored, inputs = self._read(batch, maps), transform.inputs(maps)
        packed = rebuild_features(transform, stored["feature"], inputs)
        if "score" in stored:
            scores = rebuild_scores(transform, stored["score"], inputs, packed)
        boxes = self.boxes.decode(batch, maps)
        features = narrow(maps.canvas.split_channels(packed), transform.widths)
        return TeacherOutput(features, scores, maps.floats, batch.levels, boxes)

    def _read(self, batch: EncodedBatch, maps: BatchMaps) -> dict[str, Blocks]:
        """Read the residuals and flags of each tensor."""
        flags = batch.arrays["frs"][:, : len(maps.canvas.sizes)]
        parts = self.residuals(batch, maps).items()
        return {what: Blocks(*tensors, (flags & FLAGS[what]) > 0) for what, tensors in parts}

    def compare(self, exact: TeacherOutput, stored: EncodedBatch) -> dict[str, float]:
        """Compare as frs does, with predictions from the stored tensors.

        A prediction differs in its last digits between machines. That is far less than the rounding error.
        """
        maps = self.coded_maps(stored)
        read = {what: blocks.split(maps) for what, blocks in self._read(stored, maps).items()}
        found = {}
        for what, one in self._code(exact, maps, read).items():
            parts = zip(one.scaled, self.planes(stored, maps, what))
            found[f"{what}s"] = max(float((c - q).abs().max()) for c, q in parts) / 0.5
        return {**found, "frs": self.compare_maps(exact, maps), **self.boxes.compare(exact, stored, maps)}


def sum_flags(coded: dict[str, Coded], level: int) -> Tensor:
    """Return the flags (B,) uint8 of a level."""
    return torch.stack([one.used[level].to(torch.uint8) * FLAGS[what] for what, one in coded.items()]).sum(0).byte()


def lost_share(coded: Coded, rounded: Levels, lost: float = 0.0) -> float:
    """Return the root of the share of the weighted energy that is lost. Planes that are not kept are lost.

    rounded: the coefficients over the step. Both are overwritten, because new memory takes more time than the sums.
    lost: `overlap` of the transform, which this cannot see.
    """
    total = 0.0
    for c, q, d, before, after in zip(coded.scaled, rounded, coded.steps, coded.plain, coded.left):
        square = d.flatten().square()
        lost += float((q.sub_(c).square_().sum() - c.square_().sum()) + (after / square).sum())
        total += float((before / square).sum())
    return (max(0.0, lost) / total) ** 0.5 if total > 0 else 0.0
