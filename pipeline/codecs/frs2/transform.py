"""The weighted transform of the frs codec, of what the predictions of frs2 leave.

    features   q = rint( DCT4x4[ U_l^T sqrt(w) (y - mu_l - p_l) ] / D_l ),   p_l from level l + 1, decoded
    scores     q = rint( DCT4x4[ U^T sqrt(m) (sqrt(t) - b) ] / D_l ),        b from the features, decoded

Features are coded from the coarsest level on, each level from what a decoder has of the next one. Without the tables of
the predictions this is the transform of frs. Shapes are those of pipeline/codecs/frs/weighted.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.map_values import inverse_root
from pipeline.codecs.frs.transform import to_blocks
from pipeline.codecs.frs.weighted import Levels, WeightedTransform, per_level
from pipeline.codecs.frs2.inputs import MAP_INPUTS, MapInputs, enlarge
from pipeline.codecs.frs2.levels import LevelPredictor
from pipeline.codecs.frs2.levels import derive_tables as derive_level_tables
from pipeline.codecs.frs2.predict_scores import derive_tables as derive_net_tables
from pipeline.codecs.frs2.predict_scores import predict_packed, whiten
from pipeline.codecs.frs2.residuals import choose, restore, switch
from pipeline.codecs.frs2.strengths import read_strengths, uniform_strengths
from pipeline.codecs.packing import narrow, widen
from pipeline.records import LevelShapes, TeacherOutput


class Coded(NamedTuple):
    """A tensor coded with a step, by level.

    Coefficients over the step (B, R, H4, W4), the step (B, 1, 1, 1), whether the prediction is used (B,), the weighted
    energy before and after the prediction (B,), and the decoded tensor (B, X, H, W); none where it was not requested.
    """

    scaled: Levels
    steps: Levels
    used: Levels
    plain: Levels
    left: Levels
    decoded: Levels


class Stored(NamedTuple):
    """What a cache has of a tensor, by level: weighted residual (B, X, H, W), whether the prediction is used (B,)."""

    residuals: Levels
    used: Levels


class PredictedTransform(WeightedTransform):
    """The transform with the predictions that its tables have: `level_...` for features, `net_...` for scores.

    feature_step: the step of the features that predict the scores.
    """

    def __init__(
        self,
        map_top: int,
        profile: str,
        tables: Mapping[str, np.ndarray],
        feature_step: float = 0.0,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__(map_top, profile, tables, widths)
        self.feature_step = feature_step

    def with_tables(self, tables: Mapping[str, np.ndarray], feature_step: float | None = None) -> PredictedTransform:
        step = self.feature_step if feature_step is None else feature_step
        return PredictedTransform(self.map_top, self.profile, tables, step, self.widths)

    def strengths(self, row: np.ndarray, levels: LevelShapes) -> dict[str, list[np.ndarray]]:
        """Return of each tensor the strengths of every level's blocks, from the bytes of a sample's map."""
        own = read_strengths(row, levels, self.map_top)
        return {"feature": uniform_strengths(levels) if self.is_uniform("feature") else own, "score": own}

    def trial(self, output: TeacherOutput, maps: BatchMaps, what: str) -> Callable[[float], Levels]:
        if what == "feature":
            predictor = self.level_predictor(maps)
            return lambda step: narrow(self.code_features(output, maps, step, predictor=predictor).decoded, self.widths)
        predicted = self.predict_coded(output, maps)
        return lambda step: self.code_scores(output, maps, step, predicted).decoded

    def code(self, output: TeacherOutput, maps: BatchMaps, what: str, step: float) -> Coded:
        """Code the features, or the scores around what features of `feature_step` predict. Nothing is decoded."""
        if what == "feature":
            return self.code_features(output, maps, step, decode=False)
        return self.code_scores(output, maps, step, self.predict_coded(output, maps), decode=False)

    def code_features(
        self,
        output: TeacherOutput,
        maps: BatchMaps,
        step: float,
        first: int = 0,
        stored: Stored | None = None,
        decode: bool = True,
        predictor: LevelPredictor | None = None,
    ) -> Coded:
        """Code the features from the coarsest level to level `first`. The lists start with level `first`.

        stored: what to decode and predict from, in place of what is coded here. decode: whether to return what a
        decoder has. predictor: `level_predictor` of the maps, if it is known already.
        """
        steps = per_level(self.step_sizes("feature", maps, step))
        weights, predictor = self.weights("feature", maps).floats, predictor or self.level_predictor(maps)
        rows, decoded = [], list[Tensor]()
        r: Tensor | None = None
        for level in reversed(range(first, len(output.features))):
            m, mean = weights[level], self.mean("feature", level, maps)
            plain = (widen(output.features[level].float(), mean.shape[1]) - mean).mul_(m.sqrt()[:, None])
            given = stored.used[level] if stored else None
            predicted = self.predict_features(level, r, maps, predictor)
            left, *choice = choose(plain, predicted, m, given)
            scaled = self.project("feature", level, left).div_(steps[level])
            rows.append((scaled, steps[level], *choice))
            if decode or (predictor is not None and level > first):
                residual = self._residual("feature", level, scaled, steps[level], m, stored)
                r = restore(residual, inverse_root(m), switch(choice[0], predicted))
                if decode:
                    decoded.append(mean + r)
        return Coded._make([*map(list, zip(*reversed(rows))), decoded[::-1]])

    def requantise(self, what: str, level: int, scaled: Tensor, step: Tensor, m: Tensor) -> Tensor:
        """Return the weighted residual of coefficients over the step (B, R, H4, W4), rounded."""
        return self.unproject(what, level, scaled.round() * step, (m.shape[1], m.shape[2]))

    def _residual(
        self, what: str, level: int, scaled: Tensor, step: Tensor, m: Tensor, stored: Stored | None
    ) -> Tensor:
        """Return the weighted residual that a decoder has."""
        return stored.residuals[level] if stored else self.requantise(what, level, scaled, step, m)

    def inputs(self, maps: BatchMaps) -> MapInputs:
        """Return what the predictions see of the maps."""
        return MapInputs(maps, self.tables["net_first"].shape[1] if "net_first" in self.tables else MAP_INPUTS)

    def level_predictor(self, maps: BatchMaps) -> LevelPredictor | None:
        """Return what predicts the levels; None where nothing does."""
        if "level_in" not in self.tables:
            return None
        return LevelPredictor(self.tables_on(maps.codes.device), self.inputs(maps))

    def predict_features(
        self, level: int, coarser: Tensor | None, maps: BatchMaps, predictor: LevelPredictor | None
    ) -> Tensor | None:
        """Predict y - mean of a level from the decoded one of the next level; None where there is no prediction."""
        if coarser is None or predictor is None:
            return None
        found = predictor.predict(level, to_blocks(coarser).movedim(1, -1).contiguous())
        height, width = maps.canvas.sizes[level]
        return found[:, :height, :width].movedim(-1, 1)

    @staticmethod
    def enlarge(x: Tensor, level: int, maps: BatchMaps) -> Tensor:
        """Enlarge a tensor of level + 1 to the grid of a level."""
        grids = [own[level + 1] for own in maps.canvas.own]
        return enlarge(x, grids, maps.canvas.sizes[level])

    def code_scores(
        self,
        output: TeacherOutput,
        maps: BatchMaps,
        step: float,
        predicted: Levels | None,
        stored: Stored | None = None,
        decode: bool = True,
    ) -> Coded:
        """Code the scores. predicted: sqrt(t), None without a network. stored, decode: as in `code_features`."""
        steps, rows, decoded = per_level(self.step_sizes("score", maps, step)), [], []
        for level, m in enumerate(maps.floats):
            mean = self.mean("score", level, maps)
            plain = output.scores[level].float().sqrt().sub_(mean).mul_(m.sqrt()[:, None])
            given = stored.used[level] if stored else None
            prediction = predicted[level] - mean if predicted else None
            left, *choice = choose(plain, prediction, m, given)
            scaled = self.project("score", level, left).div_(steps[level])
            rows.append((scaled, steps[level], *choice))
            if decode:
                residual = self._residual("score", level, scaled, steps[level], m, stored)
                u = restore(residual, inverse_root(m), mean + switch(choice[0], prediction))
                decoded.append(u * u.abs())
        return Coded._make([*map(list, zip(*rows)), decoded])

    def predict_coded(self, output: TeacherOutput, maps: BatchMaps) -> Levels | None:
        """Predict sqrt(t) from features coded with `feature_step`; None without a network."""
        if "net_output" not in self.tables:
            return None
        return self.predict_scores(self.code_features(output, maps, self.feature_step).decoded, maps)

    def predict_scores(self, features: Levels, maps: BatchMaps) -> Levels:
        """Predict sqrt(t) of every level from decoded features, with the network."""
        table = self.tables_on(maps.packed.device)
        x = whiten(table, maps.canvas.pack_channels(features))
        return maps.canvas.split_channels(predict_packed(table, x, self.inputs(maps)))

    def derive(self, tables: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().derive(tables) | derive_level_tables(tables) | derive_net_tables(tables)

    def tables_on(self, device: torch.device) -> Callable[[str], Tensor]:
        return lambda name: self.table(name, device)
