"""Shapes of a detector's outputs where the meta device cannot compute them, and the layout of its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import MODELS, Config
from pipeline.teacher.heads import copy_to_meta, dense_outputs, output_shapes, shapes_of
from pipeline.teacher.layout import use_fast_layout
from tests.helpers.detectors import detector

CPU = torch.device("cpu")


class NoMeta(nn.Module):
    """An op without a meta kernel, as those of mmcv's compiled extension."""

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if levels[0].is_meta:
            raise RuntimeError("deform_conv_forward_impl: implementation for device meta:0 not found.")
        return levels


def build(**changes: object) -> nn.Module:
    model = Config(detector("retinanet"))
    model.merge_from_dict(changes)
    return MODELS.build(model)


def test_a_real_pass_gives_the_shapes_where_meta_cannot() -> None:
    plain, special = build(), build()
    special.neck = nn.Sequential(special.neck, NoMeta())
    special.train()

    assert output_shapes(special, (96, 160)) == output_shapes(plain, (96, 160))
    assert special.training and copy_to_meta(special) is special  # the detector itself
    assert shapes_of(copy_to_meta(special), (64, 96)) == shapes_of(copy_to_meta(plain), (64, 96))
    assert next(copy_to_meta(plain).parameters()).is_meta


def test_parts_that_do_not_fit_are_still_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit together; check in_channels"):
        output_shapes(build(**{"neck.out_channels": 24}), (96, 160))


class Halved(nn.Module):
    """A neck whose levels have different numbers of channels, as YOLOV3Neck's."""

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (*levels[:-1], levels[-1][:, ::2])


class NoScores(nn.Module):
    """A head of queries, as DETR's: it does not take the neck's levels alone."""

    def forward(self, levels: tuple[Tensor, ...], references: Tensor) -> tuple[Tensor, ...]:
        return levels


def test_levels_of_different_widths() -> None:
    uneven = build()
    uneven.neck = nn.Sequential(uneven.neck, Halved())
    levels, widths, _ = output_shapes(uneven, (96, 160), scores=False)
    assert levels == output_shapes(build(), (96, 160))[0] and widths == (16, 16, 16, 16, 8)


def test_a_head_of_queries_is_refused() -> None:
    queries = build()
    queries.bbox_head = NoScores()
    for refused in (output_shapes, lambda model, _: copy_to_meta(model)):
        with pytest.raises(ConfigError, match=r"RetinaNet: no dense class scores.*references"):
            refused(queries, (96, 160))


def test_weight_standardisation_keeps_its_layout() -> None:
    made = build(**{"backbone.conv_cfg": {"type": "ConvWS"}})
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    made.eval()
    with torch.no_grad():
        before = dense_outputs(made, images)
        use_fast_layout(made, CPU)
        after = dense_outputs(made, images)  # channels_last weights cannot be viewed as rows

    for one, other in zip((*before[0], *before[1]), (*after[0], *after[1])):
        assert (one - other).abs().max() <= 1e-3 * one.abs().max()  # random weights, and no norm holds them back
    fast = {type(m).__name__: m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions(made)}
    assert fast == {"ConvWS2d": False, "Conv2d": True}


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """Convolutions whose two layouts differ."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]


def test_ordinary_detectors_are_channels_last() -> None:
    made, whole = build(), build()
    use_fast_layout(made, CPU)
    whole.to(memory_format=torch.channels_last)
    assert [p.stride() for p in made.parameters()] == [p.stride() for p in whole.parameters()]
    other = build()
    use_fast_layout(other, torch.device("cuda"))
    assert all(p.is_contiguous() for p in other.parameters())
