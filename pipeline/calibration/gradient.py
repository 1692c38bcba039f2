"""Measure the error that a codec causes in the gradient of the distillation losses on a student's parameters.

The measures are the relative L2 error and the cosine of dL/dtheta with decoded instead of exact tensors, for each loss
and for their weighted sum. The error of several views is the mean of theirs. Errors of the features, of the loss's
value or of dL/d(adapted feature) rank codecs wrongly, because convolutions average out white errors but not coherent
ones.

The gradient is that for relative changes of the weights: each part is multiplied by the size of its filter. It does not
depend on how a network is written. Without the sizes, a batch norm whose scale is a hundredth of its filter has a
hundred times the gradient of the same network with the norm folded. In YOLOX-Nano, 16 scales of the stem then have all
of the gradient of 0.9 million weights, and the error of a view is that of 16 numbers (docs/results/probe.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from pipeline.losses.frs import TINY
from pipeline.losses.registry import loss_named
from pipeline.records import TeacherOutput

BLOCK = 2**18  # numbers of a gradient that are converted to float64 at a time


@dataclass
class Errors:
    """Relative L2 error and cosine of a gradient; `total`: weighted sum of all losses. NaN: the gradient is 0.

    plain: relative L2 error without the filters' sizes, to compare with other measures.
    """

    relative: dict[str, float]
    cosine: dict[str, float]
    plain: dict[str, float]

    @classmethod
    def mean(cls, rows: Sequence[Errors]) -> Errors:
        """Return the mean over the rows that are not NaN."""
        return cls(*(_mean([getattr(row, field.name) for row in rows]) for field in fields(cls)))


class StudentPass:
    """One forward pass of a student, with its graph. Each further target needs one backward pass per loss.

    outputs: for each loss (`Loss.name`) the tensors that it compares, by level, on the target's grid. They are features
    (B, C, H_l, W_l), adapted where the loss adapts them, or logits (B, K, H_l, W_l). parameters: the student's trained
    parameters, without adapters.
    """

    def __init__(self, outputs: dict[str, list[Tensor]], parameters: Sequence[Tensor], exact: TeacherOutput) -> None:
        self._outputs = outputs
        self._parameters = [p for p in parameters if p.requires_grad]
        self._sizes = filter_sizes(self._parameters)
        self._at_exact = self._loss_gradients(exact)
        self._exact = [self._backward(name, gradients) for name, gradients in self._at_exact.items()]

    def errors(self, coded: TeacherOutput, weights: dict[str, float] | None = None) -> Errors:
        """Return the errors of the gradients of `coded` against the exact target, for each loss and their sum."""
        weights = weights or dict.fromkeys(self._outputs, 1.0)
        at_coded = self._loss_gradients(coded)
        # The backward pass is linear. Propagating the difference of the gradients avoids cancellation.
        change = [
            self._backward(name, [c - e for c, e in zip(gradients, self._at_exact[name])])
            for name, gradients in at_coded.items()
        ]
        sized, plain = _products([*self._exact, *change], self._sizes)
        found = Errors({}, {}, {})
        for name in [*at_coded, "total"]:
            share = [weights[n] if name == "total" else float(n == name) for n in at_coded]
            found.relative[name], found.cosine[name] = _compare(sized, share)
            found.plain[name], _ = _compare(plain, share)
        return found

    def _loss_gradients(self, target: TeacherOutput) -> dict[str, list[Tensor]]:
        """Return dL/d(output) of every loss, as a list over levels."""
        found = {}
        for name, outputs in self._outputs.items():
            leaves = [x.detach().requires_grad_() for x in outputs]
            found[name] = list(torch.autograd.grad(loss_named(name)(target, leaves), leaves))
        return found

    def _backward(self, name: str, gradients: list[Tensor]) -> Tensor:
        """Propagate dL/d(output) of a loss to dL/dtheta, one vector of all parameters."""
        outputs = self._outputs[name]
        found = torch.autograd.grad(outputs, self._parameters, gradients, retain_graph=True, allow_unused=True)
        parts = (torch.zeros_like(p) if g is None else g for p, g in zip(self._parameters, found))
        return torch.cat([part.flatten() for part in parts])


def unexplained_variance(what: str, views: Iterable[tuple[TeacherOutput, list[Tensor]]]) -> float:
    """Return the share of the teacher's variance that a student does not explain.

    what: 'feature' or 'score', the loss whose weights are used. views: (exact output, student's adapted features or
    sigmoid scores). The share is sum m (y - a)^2 / sum m, divided by the same around each level's mean: 0 for the
    teacher itself, 1 for a student that predicts only the means.
    """
    error, moments = 0.0, dict[int, list[Tensor]]()
    for exact, predicted in views:
        for level, (m, y, a) in enumerate(zip(exact.frs, exact.values(what), predicted)):
            weight = (m / m.sum().clamp_min(TINY))[:, None]
            error += float((weight * (y - a).square()).sum())
            sums = [weight.sum(), (weight * y).sum(dim=(0, 2, 3)), (weight * y.square()).sum()]
            moments[level] = [old + new for old, new in zip(moments[level], sums)] if level in moments else sums
    variance = sum(float(square - total.square().sum() / n.clamp_min(TINY)) for n, total, square in moments.values())
    return error / max(variance, TINY)


def filter_sizes(parameters: Sequence[Tensor]) -> Tensor:
    """Return for each number of all parameters the rms of its output channel. A bias has channels of one number."""
    found = []
    for parameter in parameters:
        rows = parameter.detach().flatten(1) if parameter.dim() > 1 else parameter.detach()[..., None]
        size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True) / rows.shape[-1] ** 0.5
        found.append(size.expand_as(rows).flatten())
    return torch.cat(found)


def _products(vectors: list[Tensor], sizes: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the scalar products (N, N) of N vectors, those multiplied by the sizes first, in float64."""
    sized = plain = sizes.new_zeros((len(vectors), len(vectors)), dtype=torch.float64)
    for size, *parts in zip(*(vector.split(BLOCK) for vector in [sizes, *vectors])):
        rows = torch.stack(parts).double()
        scaled = rows * size
        sized, plain = sized + scaled @ scaled.T, plain + rows @ rows.T
    both = torch.stack([sized, plain]).cpu().numpy()
    return both[0], both[1]


def _compare(products: np.ndarray, share: list[float]) -> tuple[float, float]:
    """Return |change| / |exact| and the cosine of exact and exact + change, of weighted sums of vectors.

    products: those of the exact vectors of all losses, then of their changes. share: the weight of each loss.
    """
    weights, half = np.array(share), len(share)
    blocks = products[:half, :half], products[half:, half:], products[:half, half:]
    ee, cc, ec = (float(weights @ block @ weights) for block in blocks)
    if ee == 0:
        return math.nan, math.nan
    return math.sqrt(cc / ee), (ee + ec) / math.sqrt(ee * max(ee + 2 * ec + cc, 1e-300))


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    found = {name: [row[name] for row in rows if not math.isnan(row[name])] for name in rows[0]}
    return {name: sum(values) / len(values) if values else math.nan for name, values in found.items()}
