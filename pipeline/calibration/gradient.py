"""The measure of a codec: what it does to the gradient of the distillation losses on the student's parameters.

With the decoded tensors instead of the exact ones: relative L2 error and cosine of dL/dtheta, for each loss and for
their weighted sum. Errors of the features themselves, of the loss's value or of dL/d(adapted feature) rank codecs
wrongly: convolutions average white error away and let coherent error through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.losses.frs import TINY
from pipeline.losses.registry import loss_named
from pipeline.records import TeacherOutput

Vector = list[Tensor]  # one part for each parameter


@dataclass
class Errors:
    """Relative L2 error and cosine of a gradient; `total`: weighted sum of both losses. NaN: no gradient at all."""

    relative: dict[str, float]
    cosine: dict[str, float]

    @classmethod
    def mean(cls, rows: Sequence[Errors]) -> Errors:
        """Over the rows that have a gradient."""
        return cls(_mean([row.relative for row in rows]), _mean([row.cosine for row in rows]))


class StudentPass:
    """One forward pass of a student, its graph kept: each further target costs a backward pass for each loss.

    outputs: for each loss (`Loss.name`) what it compares, on the target's canvas: features (B, C, H_l, W_l) of every
    level, adapted where the loss adapts them, or logits (B, K, H_l, W_l). parameters: those of the student that are
    trained, without adapters.
    """

    def __init__(self, outputs: dict[str, list[Tensor]], parameters: Sequence[Tensor], exact: TeacherOutput) -> None:
        self._outputs = outputs
        self._parameters = [p for p in parameters if p.requires_grad]
        self._at_exact = self._loss_gradients(exact)
        self._exact = {name: self._backward(name, grads) for name, grads in self._at_exact.items()}

    def errors(self, coded: TeacherOutput, weights: dict[str, float] | None = None) -> Errors:
        """How far the gradients of `coded` are from those of the exact target, over each loss and their sum."""
        weights = weights or dict.fromkeys(self._outputs, 1.0)
        at_coded = self._loss_gradients(coded)
        # The backward pass is linear: that of the difference is the difference, without cancellation.
        change = {
            name: self._backward(name, [c - e for c, e in zip(grads, self._at_exact[name])])
            for name, grads in at_coded.items()
        }
        relative, cosine = {}, {}
        for name, parts in {**{n: [n] for n in change}, "total": list(change)}.items():
            share = {part: weights[part] if name == "total" else 1.0 for part in parts}
            relative[name], cosine[name] = _compare(self._exact, change, share)
        return Errors(relative, cosine)

    def _loss_gradients(self, target: TeacherOutput) -> dict[str, list[Tensor]]:
        """dL/d(output) of every loss, one list over the levels each."""
        found = {}
        for name, outputs in self._outputs.items():
            leaves = [x.detach().requires_grad_() for x in outputs]
            found[name] = list(torch.autograd.grad(loss_named(name)(target, leaves), leaves))
        return found

    def _backward(self, name: str, gradients: list[Tensor]) -> Vector:
        """dL/dtheta."""
        outputs = self._outputs[name]
        found = torch.autograd.grad(outputs, self._parameters, gradients, retain_graph=True, allow_unused=True)
        return [p.new_zeros(()) if g is None else g for p, g in zip(self._parameters, found)]


def unexplained(what: str, views: Iterable[tuple[TeacherOutput, list[Tensor]]]) -> float:
    """Share of the teacher's variance that a student leaves unexplained, weighted as the 'feature' or 'score' loss is.

    views: (exact output, what the student says of it: adapted features or sigmoid scores). Of every level
    sum m (y - a)^2 / sum m, over the same around the level's mean: 0 for the teacher itself, 1 for a student that knows
    no more than the means.
    """
    wrong, moments = 0.0, dict[int, list[Tensor]]()
    for exact, guessed in views:
        for level, (m, y, a) in enumerate(zip(exact.frs, exact.values(what), guessed)):
            weight = (m / m.sum().clamp_min(TINY))[:, None]
            wrong += float((weight * (y - a).square()).sum())
            sums = [weight.sum(), (weight * y).sum(dim=(0, 2, 3)), (weight * y.square()).sum()]
            moments[level] = [old + new for old, new in zip(moments[level], sums)] if level in moments else sums
    variance = sum(float(square - total.square().sum() / n.clamp_min(TINY)) for n, total, square in moments.values())
    return wrong / max(variance, TINY)


def _compare(exact: dict[str, Vector], change: dict[str, Vector], share: dict[str, float]) -> tuple[float, float]:
    """|change| / |exact| and the cosine of exact and exact + change, parameter by parameter, in float64."""
    ee = cc = ec = 0.0
    for rows in zip(*(zip(exact[name], change[name]) for name in share)):
        e, c = (sum(w * row[i].double() for w, row in zip(share.values(), rows)) for i in (0, 1))
        ee, cc, ec = ee + float(e.square().sum()), cc + float(c.square().sum()), ec + float((e * c).sum())
    if ee == 0:
        return math.nan, math.nan
    return math.sqrt(cc / ee), (ee + ec) / math.sqrt(ee * max(ee + 2 * ec + cc, 1e-300))


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    found = {name: [row[name] for row in rows if not math.isnan(row[name])] for name in rows[0]}
    return {name: sum(values) / len(values) if values else math.nan for name, values in found.items()}
