"""Hooks that mmdet users configure: an averaged student, hooks made for a bare detector, hooks that cannot work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from torch import nn

from pipeline.config import load_config
from pipeline.errors import ConfigError, StudentError
from pipeline.mmdet_compat.registry import HOOKS, MODELS, Config
from pipeline.stage2.hooks import check_hooks
from pipeline.stage2.settings import apply_flags
from pipeline.stage2.train import train_student
from tests.helpers.distillation import distiller_and_batch

EMA = {"type": "mmengine.EMAHook", "momentum": 0.3}


def run(config: Path, folder: Path, epochs: int, resume: str | None = None, **options: Any) -> dict[str, Any]:
    """Train up to `epochs` epochs in `folder`. Returns the summary."""
    cfg, sections = load_config(str(config), {"train_cfg.max_epochs": epochs, **options})
    apply_flags(cfg, str(config), str(folder), resume, amp=False, auto_scale_lr=False, launcher="none")
    return train_student(cfg, sections)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def averaged(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with an averaged student."""
    folder = tmp_path_factory.mktemp("averaged")
    run(made["frs"], folder, 2, custom_hooks=[EMA])
    return folder


def test_the_averaged_student_has_its_own_names(made: dict[str, Path], averaged: Path) -> None:
    from mmdet.apis import init_detector

    plain = load(averaged / "epoch_2.pth")
    raw = plain["ema_state_dict"]
    differ = [k for k, v in plain["state_dict"].items() if not torch.equal(v, raw[f"module.student.{k}"])]
    assert "bbox_head.retina_cls.weight" in differ
    detector = init_detector(str(made["frs"]), str(averaged / "epoch_2.pth"), device="cpu")
    assert torch.equal(detector.bbox_head.retina_cls.weight, plain["state_dict"]["bbox_head.retina_cls.weight"])


def test_a_resumed_average_equals_an_undisturbed_one(made: dict[str, Path], averaged: Path, tmp_path: Path) -> None:
    run(made["frs"], tmp_path, 1, custom_hooks=[EMA])
    again = run(made["frs"], tmp_path, 2, "auto", custom_hooks=[EMA])
    assert again["epochs"] == 2 and again["images"] == 12
    wanted, found = load(averaged / "epoch_2.pth"), load(tmp_path / "epoch_2.pth")
    for part in ("state_dict", "ema_state_dict"):
        assert wanted[part].keys() == found[part].keys()
        assert all(torch.equal(wanted[part][key], found[part][key]) for key in wanted[part])
    assert all(torch.equal(v, found["frs"]["adapters"][k]) for k, v in wanted["frs"]["adapters"].items())


def test_a_finished_run_is_evaluated_with_averaged_weights(
    made: dict[str, Path], averaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    name = "bbox_head.retina_cls.weight"

    @HOOKS.register_module(force=True)
    class WeightsOfEvaluation(Hook):
        priority = "LOWEST"

        def before_val_epoch(self, runner: Any) -> None:
            seen.append(runner.model.student.state_dict()[name].clone())

    run(made["frs"], averaged, 2, "auto", custom_hooks=[EMA, {"type": "WeightsOfEvaluation"}])
    assert torch.equal(seen[-1], load(averaged / "epoch_2.pth")["state_dict"][name])


@pytest.mark.slow
def test_an_average_is_resumed_with_the_hook_only(made: dict[str, Path], averaged: Path, tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="was saved with EMAHook, this config lacks it"):
        run(made["frs"], averaged, 3, "auto")
    run(made["frs"], tmp_path, 1)
    with pytest.raises(StudentError, match="was saved without EMAHook, this config has it"):
        run(made["frs"], tmp_path, 2, "auto", custom_hooks=[EMA])


def test_a_copied_model_shares_the_live_teacher(made: dict[str, Path]) -> None:
    model, _ = distiller_and_batch(made["lossless"], "live")
    assert copy.deepcopy(model)._source[0] is model._source[0]


class YoloxLike(nn.Module):
    """A detector with the parts that mmdet's hooks look for."""

    def __init__(self) -> None:
        super().__init__()
        self.bbox_head = nn.Identity()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


VIEWS = [{"type": "LoadImageFromFile"}, {"type": "RandomAffine"}, {"type": "PackDetInputs"}]


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ({"type": "PipelineSwitchHook", "switch_epoch": 1, "switch_pipeline": []}, "switches the data pipeline"),
        ({"type": "mmdet.PipelineSwitchHook"}, "switches the data pipeline"),
        ({"type": HOOKS.get("PipelineSwitchHook")}, "switches the data pipeline"),
        ({"type": "MeanTeacherHook"}, "use EMAHook"),
        ({"type": "DistSamplerSeedHook"}, "has none; remove it"),
        ({"type": "SetEpochInfoHook"}, "Identity has no method set_epoch"),
        ({"type": "YOLOXModeSwitchHook"}, "Identity has no bbox_head"),
    ],
)
@pytest.mark.parametrize("where", ["custom_hooks", "default_hooks"])
def test_hooks_that_cannot_work(hook: dict[str, Any], message: str, where: str) -> None:
    cfg = Config({where: [hook] if where == "custom_hooks" else {"mine": hook, "timer": None}})
    with pytest.raises(ConfigError, match=rf"^hook \w+Hook: .*{message}"):
        check_hooks(cfg, nn.Identity(), VIEWS)


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"custom_hooks": [EMAHook()]}, r"hook EMAHook: found an object, .* write dict\(type='EMAHook', ...\)"),
        ({"default_hooks": {"checkpoint": CheckpointHook()}}, "hook CheckpointHook: found an object"),
        ({"default_hooks": [{"type": "CheckpointHook"}]}, "expected a list of dicts and a dict of dicts"),
        ({"custom_hooks": {"type": "EMAHook"}}, "expected a list of dicts and a dict of dicts"),
        (
            {"default_hooks": {"checkpoint": {"type": CheckpointHook, "interval": "1"}}},
            "hook CheckpointHook: interval: expected a whole number, found '1'",
        ),
        (
            {"default_hooks": {"checkpoint": {"type": "CheckpointHook", "save_best": "coco/bbox_map"}}},
            r"save_best: expected 'auto' or one of \['coco/bbox_mAP', .* found 'coco/bbox_map'",
        ),
    ],
)
def test_hooks_that_fail_when_they_run(hooks: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_hooks(Config({"val_evaluator": {"type": "CocoMetric"}, **hooks}), nn.Identity(), VIEWS)


def test_best_scores_that_the_metric_reports() -> None:
    for best in ("auto", "coco/bbox_mAP_50", ["coco/bbox_mAP", "coco/person_precision"]):
        saving = {"checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": best, "rule": "greater"}}
        cfg = Config({"val_evaluator": [{"type": "CocoMetric"}], "default_hooks": saving})
        check_hooks(cfg, nn.Identity(), VIEWS)


def test_a_hook_that_turns_a_cached_transform_off() -> None:
    with pytest.raises(ConfigError, match="would turn off RandomAffine"):
        check_hooks(Config({"custom_hooks": [{"type": "YOLOXModeSwitchHook"}]}), YoloxLike(), VIEWS)
    other = {"type": "YOLOXModeSwitchHook", "skip_type_keys": ["Mosaic"]}
    check_hooks(Config({"custom_hooks": [other, {"type": "SetEpochInfoHook"}, {"type": EMAHook}]}), YoloxLike(), VIEWS)


def test_hooks_for_a_bare_detector_reach_the_student(made: dict[str, Path], tmp_path: Path) -> None:
    """YOLOXModeSwitchHook sets an attribute of bbox_head, SetEpochInfoHook calls a method of the detector."""
    from mmdet.models.detectors import RetinaNet

    epochs, flags = [], []

    @MODELS.register_module(force=True)
    class WithEpoch(RetinaNet):
        def set_epoch(self, epoch: int) -> None:
            epochs.append(epoch)

        def loss(self, *args: Any, **kwargs: Any) -> Any:
            flags.append(getattr(self.bbox_head, "use_l1", False))
            return super().loss(*args, **kwargs)

    hooks = [{"type": "YOLOXModeSwitchHook", "num_last_epochs": 1}, {"type": "SetEpochInfoHook"}]
    run(made["frs"], tmp_path, 3, custom_hooks=hooks, **{"model.type": "WithEpoch"})
    steps = len(flags) // 3
    assert epochs == [0, 1, 2] and flags == [False] * steps + [True] * 2 * steps
