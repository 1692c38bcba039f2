"""A fault of the val side or of a schedule ends stage 2 before the first step, not after an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import Config
from pipeline.stage2.rehearsal import kept_generators
from pipeline.stage2.runner import build_runner
from pipeline.stage2.settings import apply_flags
from pipeline.stage2.teacher_data import prepare_teacher_data


def build(config: Path, work: Path, change: Any) -> Any:
    cfg, sections = load_config(str(config))
    change(cfg)
    apply_flags(cfg, str(config), str(work), None, False, False, "none")
    return build_runner(cfg, sections, prepare_teacher_data(cfg, sections))[0]


def without_boxes(cfg: Config) -> None:
    steps = cfg.val_dataloader.dataset.pipeline
    cfg.val_dataloader.dataset.pipeline = [step for step in steps if step["type"] != "LoadAnnotations"]
    cfg.val_evaluator.ann_file = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_boxes, "a batch cannot be measured: AssertionError: ground truth is required"),
        (
            lambda cfg: cfg.val_dataloader.dataset.pipeline[-1].update(meta_keys=("ori_shape", "img_shape")),
            "a batch cannot be measured: .*meta_keys",
        ),
        (lambda cfg: cfg.val_dataloader.dataset.pipeline.pop(), "a batch cannot be measured: KeyError: 'inputs'"),
    ],
)
def test_a_val_side_that_cannot_be_measured(made: dict[str, Path], tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(made["frs"], tmp_path, change)
    assert not list(tmp_path.glob("*.pth"))


def test_images_that_are_not_shown_do_not_count_as_missed(made: dict[str, Path], tmp_path: Path) -> None:
    runner = build(made["frs"], tmp_path, lambda cfg: cfg.val_dataloader.dataset.update(indices=[0, 3]))
    (metric,) = runner.val_loop.evaluator.metrics
    assert metric.img_ids == [100, 103] and metric.results == []


@pytest.mark.parametrize(
    "schedule",
    [
        {"type": "CosineAnnealingLR", "T_max": "x", "end": 9},
        {"type": "StepLR", "step_size": 0, "begin": 2, "end": 9},
        {"type": "ExponentialLR", "gamma": "0.5", "by_epoch": False, "begin": 500},
    ],
)
def test_a_schedule_that_fails_after_its_begin(made: dict[str, Path], tmp_path: Path, schedule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"stage 2's runner: cannot be built from the config: .*Error"):
        build(made["frs"], tmp_path, lambda cfg: cfg.update(param_scheduler=[schedule]))


def test_schedules_are_put_back(made: dict[str, Path], tmp_path: Path) -> None:
    schedules = [
        {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 9},
        {"type": "MultiStepMomentum", "milestones": [5], "begin": 4, "end": 9},
    ]
    runner = build(made["frs"], tmp_path, lambda cfg: cfg.update(param_scheduler=schedules))
    warmup, decay = runner.param_schedulers
    assert (warmup.last_step, decay.last_step, decay._global_step) == (0, -1, 0)
    (group,) = runner.optim_wrapper.param_groups
    assert group["lr"] == pytest.approx(0.1 * group["initial_lr"]) and group["momentum"] == group["initial_momentum"]


def test_the_generators_are_kept() -> None:
    before = torch.get_rng_state()
    with kept_generators():
        torch.rand(3)
        assert not torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)
