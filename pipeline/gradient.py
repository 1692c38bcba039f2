"""The measure of a codec: what it does to the gradient of the distillation losses on the student's parameters.

With the decoded tensors in the place of the exact ones: relative L2 error and cosine of dL/dtheta, for each loss and
for their weighted sum. Errors of the features themselves, of the loss's value or of dL/d(adapted feature) rank codecs
wrongly: convolutions average white error away and let coherent error through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.frs import frs_losses
from pipeline.records import TeacherOutput

LOSSES = {"feature": "loss_frs_feature", "score": "loss_frs_score"}


@dataclass
class Errors:
    """Relative L2 error and cosine of a gradient; `total` is the weighted sum of both losses."""

    relative: dict[str, float]
    cosine: dict[str, float]

    @classmethod
    def mean(cls, rows: Sequence[Errors]) -> Errors:
        names = rows[0].relative
        average = lambda part: {n: sum(getattr(r, part)[n] for r in rows) / len(rows) for n in names}  # noqa: E731
        return cls(average("relative"), average("cosine"))


class StudentPass:
    """One forward pass of a student, its graph kept: each further target costs two backward passes.

    adapted (B, C, H_l, W_l) and logits (B, K, H_l, W_l) of every level; `parameters` of the student, without adapters.
    Shapes as in TeacherOutput, on the target's canvas.
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
        exact = self._exact | {"total": _weighted(self._exact, weights)}
        change |= {"total": _weighted(change, weights)}
        relative = {n: float(change[n].norm() / exact[n].norm()) for n in exact}
        cosine = {n: float(torch.cosine_similarity(exact[n] + change[n], exact[n], dim=0)) for n in exact}
        return Errors(relative, cosine)

    def _loss_gradients(self, target: TeacherOutput) -> dict[str, list[Tensor]]:
        """dL/d(adapted) and dL/d(logits), one list over the levels each."""
        leaves = {name: [x.detach().requires_grad_() for x in tensors] for name, tensors in self._outputs.items()}
        found = frs_losses(target, leaves["feature"], leaves["score"])
        return {name: list(torch.autograd.grad(found[loss], leaves[name])) for name, loss in LOSSES.items()}

    def _backward(self, name: str, gradients: list[Tensor]) -> Tensor:
        """dL/dtheta as one vector, in float64: norms of small differences are asked of it."""
        found = torch.autograd.grad(
            self._outputs[name], self._parameters, gradients, retain_graph=True, allow_unused=True
        )
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(self._parameters, found)]
        return torch.cat([part.flatten().double() for part in parts])


def _weighted(vectors: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    return weights["feature"] * vectors["feature"] + weights["score"] * vectors["score"]
