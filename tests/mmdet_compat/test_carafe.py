"""CARAFE without a compiler, against a slow loop over the definition and against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.mmdet_compat.ops.stand_in import install

install()

from mmcv.ops import carafe  # noqa: E402

SHAPES = [(3, 1, 2), (5, 2, 2), (3, 4, 3), (1, 1, 1)]  # kernel, groups, scale


def inputs(kernel: int, groups: int, scale: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 3, 4, generator=made, dtype=torch.float64)
    masks = torch.randn(2, groups * kernel**2, 3 * scale, 4 * scale, generator=made, dtype=torch.float64)
    return features.requires_grad_(), masks.requires_grad_()


def reference(features: np.ndarray, masks: np.ndarray, kernel: int, groups: int, scale: int) -> np.ndarray:
    n, channels, height, width = features.shape
    made = np.zeros((n, channels, height * scale, width * scale))
    for b, c, y, x in np.ndindex(made.shape):
        for i, j in np.ndindex(kernel, kernel):
            row, column = y // scale + i - kernel // 2, x // scale + j - kernel // 2
            if 0 <= row < height and 0 <= column < width:
                tap = (c // (channels // groups) * kernel + i) * kernel + j
                made[b, c, y, x] += features[b, c, row, column] * masks[b, tap, y, x]
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_definition(shape: tuple[int, int, int]) -> None:
    features, masks = inputs(*shape)
    with torch.no_grad():
        made = carafe(features, masks, *shape)
    expected = reference(features.detach().numpy(), masks.detach().numpy(), *shape)
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_the_finite_differences(shape: tuple[int, int, int]) -> None:
    def upsampled(features: Tensor, masks: Tensor) -> Tensor:
        return carafe(features, masks, *shape)

    assert torch.autograd.gradcheck(upsampled, inputs(*shape), fast_mode=True, nondet_tol=0.0)


def test_half_precision_is_computed_in_single() -> None:
    features, masks = (x.detach().half() for x in inputs(3, 1, 2))
    made = carafe(features, masks, 3, 1, 2)
    assert made.dtype == torch.float16
    torch.testing.assert_close(made.float(), carafe(features.float(), masks.float(), 3, 1, 2), atol=1e-2, rtol=1e-2)
