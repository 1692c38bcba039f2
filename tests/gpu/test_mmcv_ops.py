"""The stand-in for mmcv's compiled ops on the device against plain torch on the CPU, at the sizes of real training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.mmdet_compat.ops import backend

pytestmark = pytest.mark.gpu

DTYPES = {"float32": 1e-5, "float16": 2**-9, "bfloat16": 2**-6}  # error allowed, of the largest value: two roundings
BOXES = 2000
SCALE = 1 / 8


@pytest.fixture(params=["torch", "torchvision", "deterministic"])
def library(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What runs the ops on the device; in deterministic mode they choose themselves, and no op may refuse."""
    works = backend.torchvision_works(device.type)
    if request.param == "torchvision" and not works:
        pytest.skip(f"no torchvision that works on {device.type}")
    allowed = {"torch": False, "torchvision": True, "deterministic": works}[request.param]
    monkeypatch.setattr(backend, "torchvision_works", lambda kind: allowed)
    torch.use_deterministic_algorithms(request.param == "deterministic")
    yield request.param
    torch.use_deterministic_algorithms(False)


def on_the_cpu(work: Callable[[torch.device], list[Tensor]]) -> list[Tensor]:
    """`work` done by plain torch on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "torchvision_works", lambda kind: False)
        return work(torch.device("cpu"))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def boxes(count: int = BOXES) -> Tensor:
    """(N, 4) on whole pixels of an image of 1344 x 800: areas and overlaps are exact on any device."""
    drawn = generator()
    corner = torch.rand(count, 2, generator=drawn) ** 2 * torch.tensor([1200.0, 650])
    side = torch.rand(count, 2, generator=drawn) * 140 + 4
    return torch.cat([corner, corner + side], 1).round()


def ranks(count: int = BOXES) -> Tensor:
    """(N,) scores with ties, exact in half precision too."""
    return torch.randint(0, 512, (count,), generator=generator()) / 512


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_the_same_boxes(library: str, device: torch.device, offset: int, dtype: str) -> None:
    from mmcv.ops import nms

    half = getattr(torch, dtype)
    found: Tensor = nms(boxes().to(device, half), ranks().to(device, half), 0.5, offset)[1]
    (expected,) = on_the_cpu(lambda cpu: [nms(boxes().to(half), ranks().to(half), 0.5, offset)[1]])
    assert found.device == device and torch.equal(found.cpu(), expected)
    assert 100 < len(expected) < BOXES - 100, "the boxes should suppress each other"


def kept_boxes(nms: Callable[..., tuple[Tensor, Tensor]], given: tuple[Tensor, ...], config: dict, on: Any) -> Tensor:
    """Indices of the boxes that are kept."""
    return nms(*(tensor.to(on) for tensor in given), config)[1]


def test_nms_within_classes(library: str, device: torch.device) -> None:
    """As the heads call it: boxes of different classes do not meet; over 10,000 go class by class."""
    from mmcv.ops import batched_nms

    for count in (BOXES, 11_000):
        classes = torch.randint(0, 80, (count,), generator=generator())
        scores = torch.randperm(count, generator=generator()) / count  # no ties: mmcv sorts again, and not stably
        given, config = (boxes(count), scores, classes), {"type": "nms", "iou_threshold": 0.5}
        found = kept_boxes(batched_nms, given, config, device)
        (expected,) = on_the_cpu(lambda cpu, given=given, config=config: [kept_boxes(batched_nms, given, config, cpu)])
        assert torch.equal(found.cpu(), expected) and 0 < len(expected) < count


@pytest.mark.parametrize(
    "ratio, aligned, dtype", [(0, True, "float32"), (2, False, "float32"), (0, True, "float16"), (0, True, "bfloat16")]
)
def test_roi_align(library: str, device: torch.device, ratio: int, aligned: bool, dtype: str) -> None:
    """Forward and backward: two images of 256 channels at stride 8, 1024 boxes, some of them partly outside."""
    from mmcv.ops import roi_align

    drawn, half = generator(), getattr(torch, dtype)
    coarse = torch.randn(2, 256, 13, 21, generator=drawn)
    features = torch.nn.functional.interpolate(coarse, (100, 168), mode="bilinear").to(half)
    image = torch.randint(2, (1024, 1), generator=drawn)
    rois = torch.cat([image, boxes(1024) - 20], 1).to(half)
    upstream = torch.randn(1024, 256, 7, 7, generator=drawn).to(half)

    def work(on: torch.device) -> list[Tensor]:
        leaf = features.to(on, copy=True).requires_grad_()
        pooled = roi_align(leaf, rois.to(on), 7, SCALE, ratio, "avg", aligned)
        return [pooled.detach(), *torch.autograd.grad(pooled, leaf, upstream.to(on))]

    compare(work, device, half, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_focal_loss(library: str, device: torch.device, dtype: str) -> None:
    """Forward and backward: 20,000 anchors of 80 classes, as RetinaNet's head calls it on CUDA."""
    from mmcv.ops import sigmoid_focal_loss

    drawn, half = generator(), getattr(torch, dtype)
    logits = (torch.randn(20_000, 80, generator=drawn) * 3 - 4).to(half)
    labels = torch.randint(0, 400, (20_000,), generator=drawn).clamp_max(80)  # 80: background
    weight = (torch.rand(80, generator=drawn) + 0.5).to(half)
    upstream = torch.rand(20_000, 80, generator=drawn).to(half)

    def work(on: torch.device) -> list[Tensor]:
        leaf = logits.to(on, copy=True).requires_grad_()
        loss = sigmoid_focal_loss(leaf, labels.to(on), 2.0, 0.25, weight.to(on), "none")
        return [loss.detach(), *torch.autograd.grad(loss, leaf, upstream.to(on))]

    compare(work, device, half, DTYPES[dtype])


def compare(work: Callable[[torch.device], list[Tensor]], device: torch.device, dtype: torch.dtype, off: float) -> None:
    """`work` on the device and on the CPU, tensor by tensor."""
    for found, expected in zip(work(device), on_the_cpu(work), strict=True):
        assert found.device == device and found.dtype == expected.dtype == dtype
        largest = float(expected.abs().max())
        assert largest > 0 and float((found.cpu().float() - expected.float()).abs().max()) <= off * largest
