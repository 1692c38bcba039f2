"""Stage 2 with --amp: training in half precision, distillation losses in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from torch import Tensor

from pipeline.config import load_config
from pipeline.records import TeacherOutput
from pipeline.stage2 import distiller
from pipeline.stage2.runner import build_runner
from pipeline.stage2.settings import apply_flags
from pipeline.stage2.teacher_data import prepare_teacher_data
from pipeline.stage2.teacher_source import TeacherSource
from tests.gpu.conftest import Cached
from tests.helpers.coded_batches import equal
from tests.helpers.detectors import FAMILIES

pytestmark = pytest.mark.gpu


class Logged(Hook):
    """What every step logs, by name."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append({name: float(value) for name, value in outputs.items() if "loss" in name})


class DecodedTwice:
    """A teacher source that is asked once more without autocast."""

    def __init__(self, source: TeacherSource) -> None:
        self._source, self.equal = source, list[bool]()

    def take(self, data: dict[str, Any], on: torch.device) -> Any:
        return self._source.take(data, on)

    def output(self, taken: Any) -> TeacherOutput:
        found = self._source.output(taken)
        with torch.autocast(found.frs[0].device.type, enabled=False):
            self.equal.append(equal(found, self._source.output(taken)))
        return found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_stay_finite(
    family: str, dtype: str, device: torch.device, cached: Callable[..., Cached], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if device.type == "cpu":
        if dtype == "float16":
            pytest.skip("mmengine's autocast on the CPU knows bfloat16 alone")
        # Its optimizer wrapper would refuse a CPU; after that check the same code runs.
        monkeypatch.setattr("mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True)
        # oneDNN's gradient of a 3x3 convolution of stride 2 on a map of one column holds NaN in bfloat16 (torch 2.13).
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    half, logged, compared = getattr(torch, dtype), Logged(), list[tuple[set[torch.dtype], float, float]]()

    def watched(name: str, target: TeacherOutput, own: list[Tensor]) -> Tensor:
        loss = original(name, target, own)
        with torch.autocast(device.type, enabled=False):
            again = original(name, target, [level.detach().float() for level in own])
        assert loss.requires_grad and loss.dtype == torch.float32
        compared.append(({level.dtype for level in own}, loss.item(), again.item()))
        return loss

    original = distiller.distillation_loss
    monkeypatch.setattr(distiller, "distillation_loss", watched)
    path = str(cached(family, "frs").config)
    cfg, sections = load_config(path, {"optim_wrapper.dtype": dtype})
    apply_flags(cfg, path, str(tmp_path), None, amp=True, auto_scale_lr=False, launcher="none")
    teacher_data = prepare_teacher_data(cfg, sections)
    source = DecodedTwice(teacher_data.teacher)
    runner, _ = build_runner(cfg, sections, replace(teacher_data, teacher=source), [logged])
    runner.train()

    assert len(logged.losses) == runner.iter >= 2
    for losses in logged.losses:
        assert {"loss", "loss_frs_feature", "loss_frs_score"} <= losses.keys()
        assert all(math.isfinite(value) for value in losses.values()), losses
        assert losses["loss_frs_feature"] > 0 and losses["loss_frs_score"] > 0
    assert len(compared) == 2 * runner.iter
    for own, loss, again in compared:
        assert own == {half}, "the student should run in half precision"
        assert loss == pytest.approx(again, rel=1e-6), "the loss should be computed in float32"
    assert source.equal == [True] * runner.iter, "half precision should not reach the decoder"
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in runner.model.parameters())
