"""Masked convolution without a compiler: an ordinary convolution at the chosen positions, zero elsewhere."""

from __future__ import annotations

import pytest
import torch

from pipeline.mmdet_compat.registry import MaskedConv2d
from pipeline.teacher.layout import UnmaskedConv2d, unmask


@pytest.mark.parametrize("kernel, padding", [(1, 0), (3, 1)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_chosen_positions_are_an_ordinary_convolution(kernel: int, padding: int, share: float) -> None:
    torch.manual_seed(0)
    layer = MaskedConv2d(3, 5, kernel, padding=padding).eval()
    image, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) < share

    with torch.no_grad():
        made, whole = layer(image, mask), layer(image)

    torch.testing.assert_close(made, whole * mask[:, None])
    assert (made != 0).any() == mask.any()


def test_an_unmasked_detector_computes_every_position_of_every_image() -> None:
    torch.manual_seed(0)
    head = torch.nn.Sequential(MaskedConv2d(3, 5, 3, padding=1)).eval()
    images, mask = torch.randn(2, 3, 6, 7), torch.zeros(2, 6, 7, dtype=torch.bool)
    with torch.no_grad():
        whole = head[0](images)
        unmask(head)
        made = head[0](images, mask)

    assert torch.equal(made, whole) and isinstance(head[0], UnmaskedConv2d)
