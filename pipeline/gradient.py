"""The measure of a codec: what it does to the gradient of the distillation losses on the student's parameters.

With the decoded tensors in the place of the exact ones: relative L2 error and cosine of dL/dtheta, for each loss and
for their weighted sum. Errors of the features themselves, of the loss's value or of dL/d(adapted feature) rank codecs
wrongly: convolutions average white error away and let coherent error through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.frs import frs_losses
from pipeline.records import TeacherOutput

LOSSES = {"feature": "loss_frs_feature", "score": "loss_frs_score"}
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
    """One forward pass of a student, its graph kept: each further target costs two backward passes.

    adapted (B, C, H_l, W_l) and logits (B, K, H_l, W_l) of every level; `parameters` of the student that are trained,
    without adapters. Shapes as in TeacherOutput, on the target's canvas.
    """

    def __init__(self, adapted: list[Tensor], logits: list[Tensor], parameters: Sequence[Tensor], exact: TeacherOutput):
        self._outputs = {"feature": adapted, "score": logits}
        self._parameters = [p for p in parameters if p.requires_grad]
        self._at_exact = self._loss_gradients(exact)
        self._exact = {name: self._backward(name, grads) for name, grads in self._at_exact.items()}

    def errors(self, coded: TeacherOutput, weights: dict[str, float] | None = None) -> Errors:
        """How far the gradients of `coded` are from those of the exact target, over both losses and their sum."""
        weights = weights or dict.fromkeys(LOSSES, 1.0)
        at_coded = self._loss_gradients(coded)
        # The backward pass is linear: that of the difference is the difference, without cancellation.
        change = {n: self._backward(n, [c - e for c, e in zip(at_coded[n], self._at_exact[n])]) for n in LOSSES}
        relative, cosine = {}, {}
        for name, parts in {**{n: [n] for n in LOSSES}, "total": list(LOSSES)}.items():
            share = {part: weights[part] if name == "total" else 1.0 for part in parts}
            relative[name], cosine[name] = _compare(self._exact, change, share)
        return Errors(relative, cosine)

    def _loss_gradients(self, target: TeacherOutput) -> dict[str, list[Tensor]]:
        """dL/d(adapted) and dL/d(logits), one list over the levels each."""
        leaves = {name: [x.detach().requires_grad_() for x in tensors] for name, tensors in self._outputs.items()}
        found = frs_losses(target, leaves["feature"], leaves["score"])
        return {name: list(torch.autograd.grad(found[loss], leaves[name])) for name, loss in LOSSES.items()}

    def _backward(self, name: str, gradients: list[Tensor]) -> Vector:
        """dL/dtheta."""
        outputs = self._outputs[name]
        found = torch.autograd.grad(outputs, self._parameters, gradients, retain_graph=True, allow_unused=True)
        return [p.new_zeros(()) if g is None else g for p, g in zip(self._parameters, found)]


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
