"""Deformable convolution, version 1 and modulated (version 2), with the signatures of mmcv's compiled ops.

Each kernel tap samples the image bilinearly at its own place plus a learned offset (https://arxiv.org/abs/1703.06211);
version 2 multiplies the sample by a mask (https://arxiv.org/abs/1811.11168). One image is computed at a time, which
bounds the memory. `columns`, `ones` and `im2col_step` are buffers of mmcv's kernels, which are not needed here.

N images, C channels, H x W input, O channels, P x Q output, G deformable groups, T = kernel taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.mmdet_compat.ops.backend import at_least_float32
from pipeline.mmdet_compat.ops.deform_sampling import Taps, sample

NAMES_V1 = ("k", "d", "pad", "dilation")  # with H or W: kernel, stride, padding, dilation
NAMES_V2 = ("kernel", "stride", "pad", "dilation")  # with _h or _w


def convolve(image: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, taps: Taps, groups: int) -> Tensor:
    """Return the deformable convolution (O, P, Q) of one image. `weight`: (O, C / groups, ky, kx)."""
    columns = sample(image, offset, mask, taps).view(groups, -1, offset.shape[1] * offset.shape[2])
    return (weight.reshape(groups, -1, columns.shape[1]) @ columns).view(-1, *offset.shape[1:])


def gradients(
    inputs: tuple[Tensor, Tensor, Tensor | None], weight: Tensor, grad: Tensor, taps: Taps, groups: int
) -> list[Tensor]:
    """Return the gradients of (image, offset, mask if there is one, weight), given that of one image's output."""
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in (*inputs, weight)]
    image, offset, mask, kernel = leaves
    assert image is not None and offset is not None and kernel is not None
    with torch.enable_grad():
        output = convolve(image, offset, mask, kernel, taps, groups)
    return list(torch.autograd.grad(output, [leaf for leaf in leaves if leaf is not None], grad))


def _taps_v1(given: dict[str, Any]) -> Taps:
    kernel, stride, padding, dilation = ((given[f"{name}H"], given[f"{name}W"]) for name in NAMES_V1)
    return Taps(kernel, stride, padding, dilation, given["deformable_group"])


def _taps_v2(given: dict[str, Any]) -> Taps:
    kernel, stride, padding, dilation = ((given[f"{name}_h"], given[f"{name}_w"]) for name in NAMES_V2)
    return Taps(kernel, stride, padding, dilation, given["deformable_group"])


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **given: Any
) -> None:
    """Write version 1's convolution of `input` (N, C, H, W) into `output` (N, O, P, Q).

    offset: (N, 2 * G * T, P, Q).
    """
    if output.is_meta:  # it has its shape already
        return
    x, kernel, moves = map(at_least_float32, (input, weight, offset))
    for n in range(len(x)):
        output[n] = convolve(x[n], moves[n], None, kernel, _taps_v1(given), given["group"])


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **given: Any,
) -> None:
    """Write the gradients of version 1's input and offset. Arguments as in the forward op."""
    x, kernel, moves, grad = map(at_least_float32, (input, weight, offset, grad_output))
    for n in range(len(x)):
        found = gradients((x[n], moves[n], None), kernel, grad[n], _taps_v1(given), given["group"])
        grad_input[n], grad_offset[n] = found[0], found[1]


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **given: Any,
) -> None:
    """Add the gradient of version 1's weights, times `scale`, to `grad_weight`."""
    x, moves, grad = map(at_least_float32, (input, offset, grad_output))
    for n in range(len(x)):
        samples = sample(x[n], moves[n], None, _taps_v1(given))
        grad_weight += scale * _weight_gradient(samples, grad[n], given["group"]).view_as(grad_weight)


def _weight_gradient(samples: Tensor, grad: Tensor, groups: int) -> Tensor:
    rows = samples.view(groups, -1, samples.shape[1])
    return grad.reshape(groups, -1, samples.shape[1]) @ rows.transpose(1, 2)


def _first(values: Tensor, size: torch.Size) -> Tensor:
    """Return the offsets or masks (n, p, q) of one image for an output of P x Q: its first n * P * Q numbers.

    mmcv's kernel reads them in this way without a check, and DyHead's weights are trained so: it gives the offsets of
    one FPN level to the next, which is half as large.
    """
    return values.reshape(-1)[: len(values) * size.numel()].view(-1, *size)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **given: Any,
) -> None:
    """Write version 2's convolution into `output`. `mask`: (N, G * T, P, Q). `bias`: (O,), if `with_bias`.

    Offsets and masks may be larger than the output, as in DyHead: see `_first`.
    """
    if output.is_meta:  # it has its shape already
        return
    x, kernel, moves, factors = map(at_least_float32, (input, weight, offset, mask))
    for n in range(len(x)):
        offsets, mask_n = (_first(part[n], output.shape[2:]) for part in (moves, factors))
        made = convolve(x[n], offsets, mask_n, kernel, _taps_v2(given), given["group"])
        output[n] = made + bias.view(-1, 1, 1) if with_bias else made


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **given: Any,
) -> None:
    """Write the gradients of version 2's input, offset and mask, and add those of its weights and bias."""
    x, kernel, moves, factors, grad = map(at_least_float32, (input, weight, offset, mask, grad_output))
    for n in range(len(x)):
        offsets, mask_n = (_first(part[n], grad.shape[2:]) for part in (moves, factors))
        found = gradients((x[n], offsets, mask_n), kernel, grad[n], _taps_v2(given), given["group"])
        grad_input[n] = found[0]
        for whole, part in ((grad_offset[n], found[1]), (grad_mask[n], found[2])):
            flat = pad(part.flatten(), (0, whole.numel() - part.numel()))
            whole.copy_(flat.view(whole.shape))
        grad_weight += found[3]
        if with_bias:
            grad_bias += grad[n].sum((1, 2))
