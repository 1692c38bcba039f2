"""A student that diverges stops stage 2 with the step and the term, and nothing bad is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook

from pipeline.config import load_config
from pipeline.errors import StudentError
from pipeline.mmdet_compat.registry import HOOKS
from pipeline.stage2.distiller import Distiller
from pipeline.stage2.train import train_student


def run(config: Path, folder: Path, **options: Any) -> Path:
    """Train in `folder`. Returns it."""
    train_student(*load_config(str(config), {"work_dir": str(folder), **options}))
    return folder


def test_a_learning_rate_too_high(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=r"step \d+: \w+ is NaN or infinite.*no checkpoint was saved before"):
        run(made["frs"], tmp_path, **{"optim_wrapper.optimizer.lr": 1e30, "train_cfg.max_epochs": 3})
    assert not list(tmp_path.glob("*.pth"))


def test_the_term_and_the_last_checkpoint_are_named(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Distiller.forward

    def poisoned(self: Distiller, *args: Any, **kwargs: Any) -> Any:
        losses = original(self, *args, **kwargs)
        if kwargs.get("mode") == "loss" and self.iteration == 5:
            losses["loss_frs_score"] = losses["loss_frs_score"] * torch.nan
        return losses

    monkeypatch.setattr(Distiller, "forward", poisoned)
    with pytest.raises(StudentError, match=r"step 6: loss_frs_score is NaN or infinite.*epoch_1\.pth"):
        run(made["frs"], tmp_path, **{"train_cfg.max_epochs": 2})
    assert [path.name for path in tmp_path.glob("epoch_*.pth")] == ["epoch_1.pth"]


@HOOKS.register_module(force=True)
class PoisonWeight(Hook):
    """Makes one weight infinite after the third step; the losses of that step were finite."""

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter == len(runner.train_dataloader) - 1:
            next(p for p in runner.model.parameters() if p.requires_grad).data.fill_(torch.inf)


def test_weights_are_checked_before_they_are_saved(made: dict[str, Path], tmp_path: Path) -> None:
    cfg, sections = load_config(str(made["frs"]), {"work_dir": str(tmp_path)})
    cfg.custom_hooks = [{"type": "PoisonWeight"}]  # upstream's mmengine cannot print a config with a class
    with pytest.raises(StudentError, match=r"weight student\.\S+ is NaN or infinite"):
        train_student(cfg, sections)
    assert not list(tmp_path.glob("*.pth"))
