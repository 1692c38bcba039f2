"""Deformable convolution without a compiler, against a slow loop over the definition and against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.mmdet_compat.ops.stand_in import install

install()

from mmcv.ops import deform_conv2d, modulated_deform_conv2d  # noqa: E402

SHAPES = [  # kernel, stride, padding, dilation, groups, deformable groups
    ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    ((3, 3), (2, 1), (0, 2), (1, 2), 2, 1),
    ((1, 3), (1, 2), (1, 0), (2, 1), 1, 2),
    ((3, 2), (1, 1), (1, 1), (1, 1), 4, 4),
]


def bilinear(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """(C,) sample of (C, H, W): zero at and beyond one pixel outside, and zeros outside the image."""
    _, height, width = image.shape
    if y <= -1 or x <= -1 or y >= height or x >= width:
        return np.zeros(len(image))
    total = np.zeros(len(image))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += image[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def reference(image, offset, mask, weight, stride, padding, dilation, groups, deform_groups) -> np.ndarray:
    """The definition as loops over images, positions, taps and groups."""
    n, channels = image.shape[:2]
    out, _, ky, kx = weight.shape
    rows, columns = offset.shape[2:]
    made, per = np.zeros((n, out, rows, columns)), channels // deform_groups
    for b, p, q in np.ndindex(n, rows, columns):
        found = np.zeros((channels, ky, kx))
        for g, i, j in np.ndindex(deform_groups, ky, kx):
            tap = g * ky * kx + i * kx + j
            y = p * stride[0] - padding[0] + i * dilation[0] + offset[b, 2 * tap, p, q]
            x = q * stride[1] - padding[1] + j * dilation[1] + offset[b, 2 * tap + 1, p, q]
            part = slice(g * per, (g + 1) * per)
            found[part, i, j] = bilinear(image[b, part], y, x) * (1 if mask is None else mask[b, tap, p, q])
        for o in range(out):
            group = o // (out // groups)
            part = found[group * (channels // groups) : (group + 1) * (channels // groups)]
            made[b, o, p, q] = (part * weight[o]).sum()
    return made


def inputs(shape: tuple, dtype: torch.dtype, spread: float, seed: int = 0) -> tuple[Tensor, ...]:
    """Image (2, 4, 5, 6), offset, mask and weight for a row of SHAPES."""
    kernel, stride, padding, dilation, groups, deform_groups = shape
    made = torch.Generator().manual_seed(seed)
    rows, columns = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip((5, 6), kernel, stride, padding, dilation)
    )
    taps = deform_groups * kernel[0] * kernel[1]
    return (
        torch.randn(2, 4, 5, 6, generator=made).to(dtype),
        (torch.randn(2, 2 * taps, rows, columns, generator=made) * spread).to(dtype),
        torch.rand(2, taps, rows, columns, generator=made).to(dtype),
        torch.randn(8, 4 // groups, *kernel, generator=made).to(dtype),
    )


@pytest.mark.parametrize("spread", [0.0, 0.7, 4.0], ids=["no offset", "near", "also outside the image"])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_versions_are_the_definition(shape: tuple, spread: float) -> None:
    image, offset, mask, weight = inputs(shape, torch.float64, spread)
    arrays = [tensor.numpy() for tensor in (image, offset, mask, weight)]
    rest = shape[1:]

    first = deform_conv2d(image, offset, weight, *rest)
    second = modulated_deform_conv2d(image, offset, mask, weight, torch.ones(8), *rest)

    np.testing.assert_allclose(first.numpy(), reference(*arrays[:2], None, arrays[3], *rest), atol=1e-12)
    np.testing.assert_allclose(second.numpy(), 1 + reference(*arrays, *rest), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_the_finite_differences(shape: tuple) -> None:
    image, offset, mask, weight = (x.requires_grad_() for x in inputs(shape, torch.float64, 0.7))
    bias, rest = torch.randn(8, dtype=torch.float64, requires_grad=True), shape[1:]

    def first(*args: Tensor) -> Tensor:
        return deform_conv2d(*args, *rest)

    def second(*args: Tensor) -> Tensor:
        return modulated_deform_conv2d(*args, *rest)

    assert torch.autograd.gradcheck(first, (image, offset, weight), fast_mode=True, nondet_tol=0.0)
    assert torch.autograd.gradcheck(second, (image, offset, mask, weight, bias), fast_mode=True, nondet_tol=0.0)


def test_without_offsets_it_is_an_ordinary_convolution() -> None:
    shape = ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    image, offset, mask, weight = inputs(shape, torch.float32, 0.0)

    made = modulated_deform_conv2d(image, offset, torch.ones_like(mask), weight, None, 1, 1)

    torch.testing.assert_close(made, torch.nn.functional.conv2d(image, weight, padding=1))


def test_a_place_exactly_one_pixel_outside_has_no_gradient() -> None:
    # Offsets start at zero, so with padding 1 such places are the rule. mmcv's kernel leaves them out.
    image, offset = torch.ones(1, 1, 2, 2), torch.zeros(1, 18, 2, 2, requires_grad=True)

    deform_conv2d(image, offset, torch.ones(1, 1, 3, 3), 1, 1).sum().backward()

    taps = offset.grad.view(9, 2, 2, 2)
    assert (taps[0, :, 0, 0] == 0).all()  # the upper left tap of the upper left position, at (-1, -1)
    assert (taps[4, :, 0, 0] == 0).all()  # inside an image of ones
    assert (taps[4, :, 1, 1] == -1).all()  # the last pixel: what follows it is zero


def test_half_precision_is_computed_in_single() -> None:
    shape = SHAPES[0]
    image, offset, mask, weight = inputs(shape, torch.float16, 0.7)
    exact = modulated_deform_conv2d(*(x.float() for x in (image, offset, mask, weight)), None, *shape[1:])

    image.requires_grad_()
    made = modulated_deform_conv2d(image, offset, mask, weight, None, *shape[1:])
    made.sum().backward()

    assert made.dtype == image.grad.dtype == torch.float16
    torch.testing.assert_close(made.float(), exact, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_larger_offsets_are_read_from_their_start(layout: torch.memory_format) -> None:
    """DyHead gives the offsets of a level to the next one. mmcv's kernel reads their memory as if it were smaller."""
    shape = ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    image, offset, mask, weight = inputs(shape, torch.float64, 0.7)  # (5, 6)
    small = image[:, :, :3, :4].contiguous().requires_grad_()
    offset = offset.contiguous(memory_format=layout).requires_grad_()
    first, factors = (x.detach().flatten(1)[:, : x.shape[1] * 12].view(2, -1, 3, 4) for x in (offset, mask))
    first.requires_grad_()

    made = modulated_deform_conv2d(small, offset, mask, weight, None, *shape[1:])
    expected = modulated_deform_conv2d(small, first, factors, weight, None, *shape[1:])

    assert torch.equal(made, expected)
    ours, theirs = (torch.autograd.grad(out.square().sum(), at)[0] for out, at in ((made, offset), (expected, first)))
    assert torch.equal(ours.flatten(1)[:, : first[0].numel()], theirs.flatten(1))
    assert not ours.flatten(1)[:, first[0].numel() :].any()
