"""The two ops of mmcv's masked convolution: gather the input of chosen positions, and scatter their outputs.

Guided anchoring convolves only positions that may contain an object, when it predicts. C channels, n chosen positions.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def masked_im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the kernel's inputs (C * kernel_h * kernel_w, n) at the chosen positions of `features` (1, C, H, W)."""
    image = pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    columns = data_col.view(len(image), kernel_h, kernel_w, -1)
    for row in range(kernel_h):
        for column in range(kernel_w):
            columns[:, row, column] = image[:, mask_h_idx + row, mask_w_idx + column]


def masked_col2im_forward(
    masked_output: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    output: Tensor,
    *,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write the outputs (C, n) of the chosen positions into `output` (1, C, height, width)."""
    output[0, :, mask_h_idx, mask_w_idx] = masked_output
