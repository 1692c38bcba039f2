"""Both stages of the four families on the device; there too a cached teacher is the teacher itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mmengine.device import get_device

from pipeline.calibration.calibrate import deterministic
from pipeline.config import load_config
from pipeline.stage2.train import train_student
from pipeline.teacher.model import own_device
from tests.gpu.conftest import IMAGES, Cached, used
from tests.helpers.detectors import FAMILIES
from tests.helpers.distillation import distiller_and_batch, step

pytestmark = pytest.mark.gpu


def test_all_code_takes_the_same_device(device: torch.device) -> None:
    assert own_device() == device and get_device() == device.type
    assert torch.cuda.is_available() == (device.type == "cuda")


@pytest.mark.parametrize("family", FAMILIES)
def test_both_stages(family: str, device: torch.device, cached: Callable[..., Cached]) -> None:
    config, made = cached(family, "frs")
    assert made["views"] == made["views_computed"] == 2 * IMAGES
    with used(device):
        summary = train_student(*load_config(str(config)))
    assert summary["content"] == made["content"] and summary["iterations"] >= 2
    assert 0 <= summary["mAP"] <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_live_equals_cached(family: str, device: torch.device, cached: Callable[..., Cached]) -> None:
    """The student without TF32 and with deterministic convolutions, so that only the teacher's outputs can differ."""
    config, _ = cached(family, "lossless")
    found = []
    for source in ("cache", "live"):
        model, batch = distiller_and_batch(config, source)
        assert len({tuple(view.shape) for view in batch["inputs"]}) > 1, "the batch should mix shapes"
        with deterministic(), used(device):
            found.append(step(model.to(device), batch))
    (losses, gradients), (live_losses, live_gradients) = found
    for name, value in losses.items():
        assert value.device == device
        assert 0 < value.item() == pytest.approx(live_losses[name].item(), rel=1e-5)
    assert losses.keys() == live_losses.keys() and gradients.keys() == live_gradients.keys() and gradients
    flat, live = (torch.cat([part.flatten() for part in parts.values()]) for parts in (gradients, live_gradients))
    assert torch.linalg.norm(flat - live) <= 1e-5 * torch.linalg.norm(live)
