"""Training by steps (IterBasedTrainLoop): its steps, its validation, and an exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import Config
from pipeline.stage2.settings import loop_of
from tests.helpers.stages import stage2

VALIDATED: list[int] = []  # steps done before each validation
SEEN: list[list[int]] = []  # images of each step


@HOOKS.register_module(force=True)
class Watch(Hook):
    def before_val(self, runner: Any) -> None:
        VALIDATED.append(runner.iter)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        SEEN.append([sample.img_id for sample in data_batch["data_samples"]])


@pytest.fixture
def config(made: dict[str, Path], tmp_path: Path) -> Path:
    """7 steps of 4 images over 12: two passes and a step."""
    cfg = Config.fromfile(made["lossless"])
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 7, "val_interval": 3, "val_begin": 2}
    cfg.default_hooks.checkpoint = {"type": "CheckpointHook", "by_epoch": False, "interval": 5, "max_keep_ckpts": 9}
    step_decay = {"type": "MultiStepLR", "by_epoch": False, "milestones": [4], "gamma": 0.1}
    cfg.param_scheduler, cfg.custom_hooks = [step_decay], [{"type": "Watch"}]
    cfg.work_dir = str(tmp_path / "run")
    cfg.dump(tmp_path / "config.py")
    VALIDATED.clear()
    SEEN.clear()
    return tmp_path / "config.py"


def test_steps_and_validation_are_those_of_mmengine(config: Path) -> None:
    summary = stage2(config)

    assert (summary["iterations"], VALIDATED) == (7, [3, 6, 7])
    assert len(SEEN) == 7
    for steps in (SEEN[:3], SEEN[3:6]):  # each image once before any is seen again
        assert sorted(image for batch in steps for image in batch) == list(range(100, 112))
    saved = torch.load(config.parent / "run" / "iter_7.pth", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.0001)
    assert sorted(p.name for p in (config.parent / "run").glob("*.pth")) == ["iter_5.pth", "iter_7.pth"]


def test_a_resumed_run_ends_with_the_same_weights(config: Path) -> None:
    stage2(config)
    whole = torch.load(config.parent / "run" / "iter_7.pth", weights_only=True)["state_dict"]
    seen = SEEN.copy()

    again = stage2(config, resume=str(config.parent / "run" / "iter_5.pth"))

    assert again["iterations"] == 7 and seen == SEEN[:7] and SEEN[7:] == seen[5:]
    resumed = torch.load(config.parent / "run" / "iter_7.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


@pytest.mark.parametrize(
    "train_cfg, expected",
    [
        ({"max_epochs": 2}, "EpochBasedTrainLoop"),
        ({"by_epoch": True, "max_epochs": 2}, "EpochBasedTrainLoop"),
        ({"by_epoch": False, "max_iters": 2}, "IterBasedTrainLoop"),
        ({"type": "mmengine.IterBasedTrainLoop", "max_iters": 2}, "IterBasedTrainLoop"),
    ],
)
def test_the_loop_of_a_config(train_cfg: dict[str, Any], expected: str) -> None:
    assert loop_of(Config({"train_cfg": train_cfg})) == expected


@pytest.mark.parametrize(
    "train_cfg, line",
    [
        ({"type": "TeacherStudentValLoop", "max_epochs": 1}, "expected one of"),
        ({"type": "EpochBasedTrainLoop", "by_epoch": False, "max_epochs": 1}, "expected one of"),
        ({"type": "IterBasedTrainLoop", "max_epochs": 1}, "max_iters: expected a whole number"),
        ({"max_epochs": 0}, "max_epochs: expected a whole number"),
        ({"max_epochs": 1.5}, "max_epochs: expected a whole number"),
    ],
)
def test_another_loop_or_length_is_refused(train_cfg: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        loop_of(Config({"train_cfg": train_cfg}))
