"""What stage 2 changes in a config: the learning rate follows the batch where the config or the flag says so."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import Config
from pipeline.stage2 import settings
from pipeline.stage2.settings import apply_flags, check_training


def config(**auto_scale_lr: Any) -> Config:
    return Config(
        {
            "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01}},
            "train_dataloader": {"batch_size": 2},
            **({"auto_scale_lr": auto_scale_lr} if auto_scale_lr else {}),
        }
    )


def rate(cfg: Config, flag: bool = False, launcher: str = "none") -> float:
    apply_flags(cfg, "c.py", None, None, amp=False, auto_scale_lr=flag, launcher=launcher)
    return cfg.optim_wrapper.optimizer.lr


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is printed."""
    lines: list[str] = []
    monkeypatch.setattr(settings, "print_log", lambda text, *_: lines.append(text))
    return lines


def test_the_config_may_ask_for_it(warnings: list[str]) -> None:
    assert rate(config(enable=True, base_batch_size=16)) == pytest.approx(0.00125)
    assert not warnings


def test_the_flag_asks_for_it(warnings: list[str]) -> None:
    assert rate(config(enable=False, base_batch_size=16), flag=True) == pytest.approx(0.00125)
    assert not warnings


def test_ranks_count(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert rate(config(enable=True, base_batch_size=16), launcher="pytorch") == pytest.approx(0.01)
    assert rate(config(base_batch_size=16), launcher="pytorch") == 0.01
    assert not warnings


def test_another_batch_than_the_rates_is_said(warnings: list[str]) -> None:
    assert rate(config(base_batch_size=16)) == 0.01
    (line,) = warnings
    assert "2 images a step" in line and "for 16" in line and "--auto-scale-lr" in line


def test_nothing_is_said_where_no_base_is_known(warnings: list[str]) -> None:
    assert rate(config()) == 0.01 and not warnings
    with pytest.raises(ConfigError, match="base_batch_size"):
        rate(config(enable=True))


def test_accumulated_steps_are_one_batch(warnings: list[str]) -> None:
    cfg = config(enable=True, base_batch_size=16)
    cfg.optim_wrapper.accumulative_counts = 4
    assert rate(cfg) == pytest.approx(0.005)
    cfg = config(base_batch_size=16)
    cfg.optim_wrapper.accumulative_counts = 8
    assert rate(cfg) == 0.01 and not warnings


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("auto_scale_lr", True, r"auto_scale_lr: expected dict\(enable=..., base_batch_size=...\), found True"),
        ("auto_scale_lr.base_batch_size", "16", "base_batch_size: expected a number above 0, found '16'"),
        ("auto_scale_lr.base_batch_size", -16, "base_batch_size: expected a number above 0, found -16"),
        ("optim_wrapper.optimizer.lr", "0.1", "optimizer.lr: expected a number to scale, found '0.1'"),
        ("optim_wrapper.optimizer", {"type": "SGD"}, "optimizer.lr: expected a number to scale, found None"),
        ("optim_wrapper.accumulative_counts", "4", "accumulative_counts: expected an integer of at least 1, found '4'"),
        ("train_dataloader.batch_size", "2", "batch_size: expected an integer of at least 1, found '2'"),
    ],
)
def test_what_cannot_be_scaled_is_named(key: str, value: Any, message: str) -> None:
    cfg = config(enable=True, base_batch_size=16)
    part: Any = cfg
    *folders, name = key.split(".")
    for one in folders:
        part = part[one]
    part[name] = value
    with pytest.raises(ConfigError, match=message):
        rate(cfg)


@pytest.mark.parametrize("given", [{"val_interval": 0}, {"val_interval": "1"}, {"max_epochs": 0}, {"max_epochs": None}])
def test_epochs_that_cannot_be_counted(given: dict[str, Any]) -> None:
    (key,) = given
    with pytest.raises(ConfigError, match=rf"train_cfg\.{key}: expected a whole number of at least 1, found"):
        check_training(training(train_cfg={"max_epochs": 1, **given}))


def training(**changes: Any) -> Config:
    parts: dict[str, Any] = {"val_dataloader": {}, "val_evaluator": {}, "optim_wrapper": {}}
    parts |= {"train_cfg": {"max_epochs": 1}, "train_dataloader": {}}
    made = Config({**parts, "model": {"data_preprocessor": {"pad_size_divisor": 32}}})
    made.merge_from_dict(changes)
    return made


@pytest.mark.parametrize("given, padded", [(1, 32), (32, 32), (64, 64), (48, 96)])
def test_the_student_pads_as_the_teacher_does(warnings: list[str], given: int, padded: int) -> None:
    cfg = training(**{"model.data_preprocessor.pad_size_divisor": given})
    check_training(cfg)
    assert cfg.model.data_preprocessor.pad_size_divisor == padded
    assert [f"pad_size_divisor {given} -> {padded}" in line for line in warnings] == ([True] if given != padded else [])


def test_a_missing_divisor_is_one(warnings: list[str]) -> None:
    cfg = training()
    cfg.model.data_preprocessor = {"mean": [0, 0, 0]}
    check_training(cfg)
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    cfg.model.pop("data_preprocessor")
    with pytest.raises(ConfigError, match=r"model.data_preprocessor: missing"):
        check_training(cfg)


def test_augments_that_only_pad_are_accepted() -> None:
    pads = {"type": "BatchFixedSizePad", "size": (1024, 1024), "pad_mask": True}
    check_training(training(**{"model.data_preprocessor.batch_augments": [pads]}))
    mixed = [pads, {"type": "BatchSyncRandomResize", "random_size_range": (480, 800)}]
    with pytest.raises(ConfigError, match="batch_augments: BatchSyncRandomResize changes images"):
        check_training(training(**{"model.data_preprocessor.batch_augments": mixed}))


def test_an_op_of_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = training(**{"model.roi_head": {"extractors": [{"roi_layer": {"type": "RoIAlign", "use_torchvision": True}}]}})
    cfg.model.rpn_head = {"type": "RPNHead"}
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="use_torchvision=True needs torchvision; install it, or set"):
        check_training(cfg)
    monkeypatch.setattr(settings, "find_spec", lambda name: object())
    check_training(cfg)


@pytest.mark.parametrize("head", ["PAAHead", "LADHead"])
def test_a_head_that_needs_another_package_is_named(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    cfg = training(**{"model.bbox_head": {"type": head}})
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"{head} needs scikit-learn to train"):
        check_training(cfg)
    monkeypatch.setattr(settings, "find_spec", lambda name: object())
    check_training(cfg)
