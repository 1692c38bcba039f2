"""Fit the probe's adapters, 3x3 convolutions, by regression.

A trained adapter leaves no error that its inputs could explain, and it averages over nine positions. Both properties
decide how much a codec's error changes the gradient of the student's parameters.

Shape legend: C channels, N positions sampled on a level, X = 9 C + 1 inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.calibration.positions import Sampled
from pipeline.losses.frs import TINY

RIDGE = 0.01  # penalty on the weights' distance from their prior, in units of the inputs' mean variance


@dataclass
class Adapters:
    """One convolution for each level, from the student's C to the teacher's, with bias."""

    weights: list[Tensor]
    biases: list[Tensor]

    def __call__(self, features: list[Tensor]) -> list[Tensor]:
        return [F.conv2d(x, w, b, padding=1) for x, w, b in zip(features, self.weights, self.biases)]


def fit_adapters(views: Iterable[tuple[Sampled, list[Tensor]]], copies: bool = False) -> Adapters:
    """Fit adapters from a student's features (1, C, H_l, W_l) to the teacher's by ridge regression.

    views: (exact output, student's features) of each view. Positions are weighted as in the feature loss. All 67,000
    positions of P2 at 800x1333 would take 600 MB, so they are sampled. copies: the student is a disturbed copy of the
    teacher, so the regression shrinks towards the adapter that copies its input. Shrunk towards 0, the adapters alone
    leave 7% of YOLOX-Nano's variance, whatever the noise, and the gradient of that part is half of what noise causes.
    """
    squares: list[Tensor] = []
    products: list[Tensor] = []
    for exact, features in views:
        for level, (x, y, weight) in enumerate(zip(features, exact.output.features, exact.output.frs)):
            inputs = _gather_neighbourhoods(x, exact.places[level])
            weighted = inputs * weight[0, 0, :, None]
            square, product = weighted.T @ inputs, weighted.T @ y[0, :, 0].T
            if level == len(squares):
                squares.append(square.double())
                products.append(product.double())
            else:
                squares[level] += square
                products[level] += product
    solved = [_solve(square, product, copies) for square, product in zip(squares, products)]
    return Adapters([s[:-1].T.reshape(s.shape[1], -1, 3, 3).contiguous() for s in solved], [s[-1] for s in solved])


def _gather_neighbourhoods(x: Tensor, places: Tensor) -> Tensor:
    """Return (N, X): the 3x3 neighbourhoods in x (1, C, H, W), in unfold's order, and 1 for the bias."""
    width = x.shape[3]
    padded = F.pad(x[0], (1, 1, 1, 1))
    rows, columns = places // width, places % width
    shifted = [padded[:, rows + i, columns + j] for i in range(3) for j in range(3)]
    return F.pad(torch.stack(shifted, dim=1).flatten(0, 1).T, (0, 1), value=1.0)


def _solve(square: Tensor, product: Tensor, copies: bool) -> Tensor:
    """Solve the normal equations (X, X) and (X, C) for (X, C). The penalty of the bias is almost 0."""
    views = square[-1, -1].clamp_min(TINY)
    variance = (square.diagonal()[:-1] / views - (square[-1, :-1] / views).square()).mean().clamp_min(TINY)
    penalty = torch.full_like(square[0], float(RIDGE * variance * views))
    penalty[-1] = 1e-6
    prior = _copying(product) if copies else torch.zeros_like(product)
    return (prior + torch.linalg.solve(square + penalty.diag(), product - square @ prior)).float()


def _copying(product: Tensor) -> Tensor:
    """Return the solution (X, C) that copies each channel of the neighbourhood's centre."""
    prior = torch.zeros_like(product)
    channels = torch.arange(product.shape[1], device=product.device)
    prior[9 * channels + 4, channels] = 1.0
    return prior
