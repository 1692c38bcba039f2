"""Stage 2 with --amp: training in half precision, distillation losses in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from tests.gpu.conftest import Cached
from tests.helpers.detectors import FAMILIES

pytestmark = pytest.mark.gpu


class Logged(Hook):
    """What every step logs, by name."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append({name: float(value) for name, value in outputs.items() if "loss" in name})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_stay_finite(
    family: str, dtype: str, device: torch.device, cached: Callable[..., Cached], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if device.type == "cpu":
        if dtype == "float16":
            pytest.skip("mmengine's autocast on the CPU knows bfloat16 alone")
        # Its optimizer wrapper would refuse a CPU; behind that check the same code runs.
        monkeypatch.setattr("mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True)
    half, logged = getattr(torch, dtype), Logged()
    compared: list[Any] = []

    def watched(name: str, target: TeacherOutput, own: list[Tensor]) -> Tensor:
        loss = original(name, target, own)
        taught = [*target.features, *target.scores, *target.frs]
        compared.append(({t.dtype for t in own}, {t.dtype for t in taught}, loss.dtype, loss.grad_fn is not None))
        return loss

    original = distiller.distillation_loss
    monkeypatch.setattr(distiller, "distillation_loss", watched)
    path = str(cached(family, "frs").config)
    cfg, sections = load_config(path, {"optim_wrapper.dtype": dtype})
    apply_flags(cfg, path, str(tmp_path), None, amp=True, auto_scale_lr=False, launcher="none")
    runner, _ = build_runner(cfg, sections, prepare_teacher_data(cfg, sections), [logged])
    runner.train()

    assert len(logged.losses) == runner.iter >= 2
    for losses in logged.losses:
        assert {"loss", "loss_frs_feature", "loss_frs_score"} <= losses.keys()
        assert all(math.isfinite(value) for value in losses.values()), losses
        assert losses["loss_frs_feature"] > 0 and losses["loss_frs_score"] > 0
    assert len(compared) == 2 * runner.iter
    for own, taught, loss, trains in compared:
        assert own == {half}, "the student should run in half precision"
        assert taught == {torch.float32} and loss == torch.float32 and trains
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in runner.model.parameters())
