"""The weighted transform of the frs codec, of what the predictions of frs2 leave.

    features   q = rint( DCT4x4[ U_l^T sqrt(w) (y - mu_l - p_l) ] / D_l ),   p_l from level l + 1, decoded
    scores     q = rint( DCT4x4[ U^T sqrt(m) (sqrt(t) - b) ] / D_l ),        b from the features, decoded

Features are coded from the coarsest level on, each level from what a decoder has of the next one. Without the tables of
the predictions this is the transform of frs. Shapes are those of pipeline/codecs/frs/weighted.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps, inverse_root
from pipeline.codecs.frs.weighted import Levels, WeightedTransform, per_level
from pipeline.codecs.frs2.inputs import enlarge, inside, log_map, map_inputs
from pipeline.codecs.frs2.predict_levels import predict_level
from pipeline.codecs.frs2.predict_scores import predict_roots, whiten
from pipeline.codecs.packing import narrow, widen
from pipeline.records import TeacherOutput


class Coded(NamedTuple):
    """A tensor coded with a step, by level.

    Coefficients over the step (B, R, H4, W4), the step (B, 1, 1, 1), whether the prediction is used (B,), the weighted
    energy before and after the prediction (B,), and the decoded tensor (B, X, H, W).
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

    def trial(self, output: TeacherOutput, maps: BatchMaps, what: str) -> Callable[[float], Levels]:
        if what == "feature":
            return lambda step: narrow(self.code_features(output, maps, step).decoded, self.widths)
        predicted = self.predict_scores(self.code_features(output, maps, self.feature_step).decoded, maps)
        return lambda step: self.code_scores(output, maps, step, predicted).decoded

    def code(self, output: TeacherOutput, maps: BatchMaps, what: str, step: float) -> Coded:
        """Code the features, or the scores around what features of `feature_step` predict."""
        if what == "feature":
            return self.code_features(output, maps, step)
        features = self.code_features(output, maps, self.feature_step).decoded
        return self.code_scores(output, maps, step, self.predict_scores(features, maps))

    def code_features(
        self, output: TeacherOutput, maps: BatchMaps, step: float, first: int = 0, stored: Stored | None = None
    ) -> Coded:
        """Code the features from the coarsest level to level `first`. The lists start with level `first`.

        stored: what to decode and predict from, in place of what is coded here.
        """
        steps = per_level(self.step_sizes("feature", maps, step))
        weights = self.weights("feature", maps).floats
        rows, r = [], None
        for level in reversed(range(first, len(output.features))):
            m, mean = weights[level], self.mean("feature", level, maps)
            plain = m.sqrt()[:, None] * (widen(output.features[level].float(), mean.shape[1]) - mean)
            given = stored.used[level] if stored else None
            prediction, left, *energies = choose(plain, self.predict_features(level, r, maps), m, given)
            scaled = self.project("feature", level, left) / steps[level]
            residual = stored.residuals[level] if stored else self.requantise("feature", level, scaled, steps[level], m)
            r = restore(residual, inverse_root(m), prediction)
            rows.append((scaled, steps[level], *energies, mean + r))
        return Coded(*map(list, zip(*reversed(rows))))

    def rebuild_features(self, stored: Stored, maps: BatchMaps) -> Levels:
        """Return the features of every level."""
        inverse, decoded, r = inverse_roots(self.weights("feature", maps)), [], None
        for level in reversed(range(len(stored.residuals))):
            prediction = switch(stored.used[level], self.predict_features(level, r, maps))
            r = restore(stored.residuals[level], inverse[level], prediction)
            decoded.append(self.mean("feature", level, maps) + r)
        return decoded[::-1]

    def requantise(self, what: str, level: int, scaled: Tensor, step: Tensor, m: Tensor) -> Tensor:
        """Return the weighted residual of coefficients over the step (B, R, H4, W4), rounded."""
        return self.unproject(what, level, scaled.round() * step, (m.shape[1], m.shape[2]))

    def predict_features(self, level: int, coarser: Tensor | None, maps: BatchMaps) -> Tensor:
        """Predict y - mean of a level from the decoded one of the next level; 0 where there is no prediction."""
        m = maps.floats[level]
        if coarser is None or "level_in" not in self.tables:
            return m.new_zeros((1, 1, 1, 1))
        grow = partial(self.enlarge, level=level, maps=maps)
        table, inputs = self.tables_on(m.device), map_inputs(maps, level)
        return predict_level(table, level, grow, coarser, inside(maps, level + 1), inputs)

    @staticmethod
    def enlarge(x: Tensor, level: int, maps: BatchMaps) -> Tensor:
        """Enlarge a tensor of level + 1 to the grid of a level."""
        grids = [own[level + 1] for own in maps.canvas.own]
        height, width = maps.floats[level].shape[1:]
        return enlarge(x, grids, (height, width))

    def code_scores(
        self, output: TeacherOutput, maps: BatchMaps, step: float, predicted: Levels, stored: Stored | None = None
    ) -> Coded:
        """Code the scores. predicted: from `predict_scores`. stored: as in `code_features`."""
        steps, rows = per_level(self.step_sizes("score", maps, step)), []
        for level, (m, roots) in enumerate(zip(maps.floats, predicted)):
            mean = self.mean("score", level, maps)
            plain = m.sqrt()[:, None] * (output.scores[level].float().sqrt() - mean)
            prediction, left, *energies = choose(plain, roots - mean, m, stored.used[level] if stored else None)
            scaled = self.project("score", level, left) / steps[level]
            residual = stored.residuals[level] if stored else self.requantise("score", level, scaled, steps[level], m)
            u = restore(residual, inverse_root(m), mean + prediction)
            rows.append((scaled, steps[level], *energies, u * u.abs()))
        return Coded(*map(list, zip(*rows)))

    def rebuild_scores(self, stored: Stored, maps: BatchMaps, predicted: Levels) -> Levels:
        """Return the scores of every level. predicted: from `predict_scores`."""
        out = []
        for level, (root, roots) in enumerate(zip(inverse_roots(maps), predicted)):
            used = stored.used[level][:, None, None, None]
            base = torch.where(used, roots, self.mean("score", level, maps))
            u = restore(stored.residuals[level], root, base)
            out.append(u.mul_(u.abs()))
        return out

    def predict_scores(self, features: Levels, maps: BatchMaps) -> Levels:
        """Predict sqrt(t) of every level from decoded features; the mean given the map where there is no network."""
        predict = self._run_network if "net_output" in self.tables else self._mean_roots
        return [predict(level, y, maps) for level, y in enumerate(features)]

    def _mean_roots(self, level: int, features: Tensor, maps: BatchMaps) -> Tensor:
        return self.mean("score", level, maps)

    def _run_network(self, level: int, features: Tensor, maps: BatchMaps) -> Tensor:
        """Predict sqrt(t) of a level with the network."""
        m = maps.floats[level]
        table = self.tables_on(m.device)
        return predict_roots(table, level, whiten(table, features), log_map(m), m, inside(maps, level))

    def tables_on(self, device: torch.device) -> Callable[[str], Tensor]:
        return lambda name: self.table(name, device)


def choose(
    plain: Tensor, prediction: Tensor, m: Tensor, given: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Use a prediction for the samples where it leaves less energy than there was.

    plain: the weighted residual without a prediction (B, X, H, W). m: the weights (B, H, W). given: which samples use
    it (B,), if that is stored. Return the prediction, 0 where it is not used, what it leaves, which samples use it,
    and the energy before and after, (B,) each.
    """
    left = plain - m.sqrt()[:, None] * prediction
    before, after = (x.square().sum(dim=(1, 2, 3)) for x in (plain, left))
    used = after < before if given is None else given
    left = torch.where(used[:, None, None, None], left, plain)
    return switch(used, prediction), left, used, before, torch.where(used, after, before)


def restore(residual: Tensor, root: Tensor, base: Tensor) -> Tensor:
    """Add a weighted residual (B, X, H, W) to base, without its weight m. root: m^-1/2 (B, H, W)."""
    return torch.addcmul(base, residual, root[:, None])


def inverse_roots(maps: BatchMaps) -> Levels:
    """Return m^-1/2 of every level."""
    return maps.canvas.split(maps.inverse_root)


def switch(used: Tensor, prediction: Tensor) -> Tensor:
    """Return the prediction (B, X, H, W) of the samples that use it, else 0."""
    return torch.where(used[:, None, None, None], prediction, 0.0)
