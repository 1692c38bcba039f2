"""A run that is interrupted and resumed makes the same steps: the same samples, the same weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from pipeline.errors import StudentError
from pipeline.stage2.checkpoint import WholeCheckpointHook
from tests.helpers.forks import exit_code, in_child
from tests.helpers.launch import finished, kill_a_rank, launch
from tests.helpers.stages import stage2

RECORDER = """
import json
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class StepRecorder(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        rank, ids = runner.rank, [int(s.img_id) for s in data_batch["data_samples"]]
        with open(f"{runner.work_dir}/steps-{rank}.jsonl", "a") as file:
            file.write(json.dumps([runner.epoch, runner.iter, ids]) + chr(10))
"""


@pytest.fixture(scope="module")
def config(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Six steps an epoch, two epochs, a checkpoint after each step, and a record of the samples of each step."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "recorder.py").write_text(RECORDER)
    (folder / "config.py").write_text(f"""
_base_ = {str(made["lossless"])!r}
custom_imports = dict(imports=["recorder"])
custom_hooks = [dict(type="StepRecorder")]
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1))
optim_wrapper = dict(optimizer=dict(momentum=0.9))
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=9)]
""")
    sys.path.append(str(folder))
    yield folder / "config.py"
    sys.path.remove(str(folder))


def train(config: Path, work: Path, *more: str, ranks: int = 1, batch: int = 2) -> subprocess.Popen:
    """Start stage 2 as a user does."""
    options = ["--work-dir", str(work), "--cfg-options", f"train_dataloader.batch_size={batch}"]
    arguments = ["--config", str(config), *options, *more]  # torchrun's ranks are known without --launcher
    return launch("stage2_distill.py", *arguments, ranks=ranks, path=config.parent)


def read_steps(work: Path) -> dict[int, list[int]]:
    """Return the image ids of every step over all ranks. For a repeated step, the last record counts."""
    steps: dict[int, list[list[int]]] = {}
    for path in sorted(work.glob("steps-*.jsonl")):
        own = {step: ids for _, step, ids in map(json.loads, path.read_text().splitlines())}
        for step, ids in own.items():
            steps.setdefault(step, []).append(ids)
    return {step: [i for ids in parts for i in ids] for step, parts in sorted(steps.items())}


def weights(path: Path) -> dict[str, torch.Tensor]:
    found = torch.load(path, weights_only=True)
    return {**found["state_dict"], **{f"adapters.{k}": v for k, v in found["frs"]["adapters"].items()}}


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("undisturbed")
    finished(train(config, work))
    assert [sorted(ids for step in range(e * 6, e * 6 + 6) for ids in read_steps(work)[step]) for e in (0, 1)] == [
        list(range(100, 112))
    ] * 2
    return work


def test_a_killed_and_resumed_run_equals_an_undisturbed_one(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    child = in_child(partial(stage2, config, work_dir=str(tmp_path)))
    while not (tmp_path / "iter_4.pth").exists():
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL, "the run ended before it was killed"
    made = max(read_steps(tmp_path))
    assert 3 <= made < 11
    (tmp_path / "steps-0.jsonl").rename(tmp_path / "before")
    stage2(config, resume="auto", work_dir=str(tmp_path))
    assert min(read_steps(tmp_path)) >= 3, "completed steps are not repeated"
    for step, ids in read_steps(tmp_path).items():
        assert ids == read_steps(undisturbed)[step]
    same(tmp_path / "iter_12.pth", undisturbed / "iter_12.pth")


def same(one: Path, other: Path) -> None:
    found, expected = weights(one), weights(other)
    assert found.keys() == expected.keys()
    different = [name for name in found if not torch.equal(found[name], expected[name])]
    assert not different


def test_an_incomplete_checkpoint_is_skipped(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """After a kill: the newest file is incomplete, mmengine's last_checkpoint is empty, max_keep_ckpts=1."""
    shutil.copy(undisturbed / "iter_7.pth", tmp_path / "previous.pth")
    (tmp_path / "iter_8.pth").write_bytes((undisturbed / "iter_8.pth").read_bytes()[:5000])
    (tmp_path / "last_checkpoint").write_text("")
    stage2(config, resume="auto", work_dir=str(tmp_path))
    assert min(read_steps(tmp_path)) == 7
    same(tmp_path / "iter_12.pth", undisturbed / "iter_12.pth")
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"torn")
    with pytest.raises(StudentError, match=r"none of its \d+ .pth files can be resumed"):
        stage2(config, resume="auto", work_dir=str(tmp_path))


def test_one_complete_checkpoint_always_exists(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine removes the old one before it writes the new one."""
    there, save = [], Runner.save_checkpoint
    options = {"default_hooks.checkpoint.max_keep_ckpts": 1, "work_dir": str(tmp_path), "train_cfg.max_epochs": 1}

    def remember(self: Runner, *args: Any, **more: Any) -> None:
        there.append(len(list(tmp_path.glob("*.pth"))))
        save(self, *args, **more)

    monkeypatch.setattr(Runner, "save_checkpoint", remember)
    stage2(config, **options)
    assert there == [0, 1, 1, 1, 1, 1] and [p.name for p in tmp_path.glob("*.pth")] == ["iter_6.pth"]


def test_the_previous_checkpoint_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the run resumes from it by another path, and on a file system without hard links."""
    saved: list[list[str]] = []

    def save(*_: Any) -> None:
        saved.append(sorted(p.name for p in tmp_path.iterdir()))

    monkeypatch.setattr(CheckpointHook, "_save_checkpoint_with_step", save)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "previous.pth").write_bytes(b"whole")
    resumed = SimpleNamespace(work_dir=".", _resume=True, _load_from=str(tmp_path / "previous.pth"))
    hook = WholeCheckpointHook()
    hook.last_ckpt = None
    hook._save_checkpoint_with_step(resumed, 1, {})
    assert saved.pop() == ["previous.pth"]
    (tmp_path / "epoch_1.pth").write_bytes(b"whole")
    hook.last_ckpt = "epoch_1.pth"
    monkeypatch.setattr(Path, "hardlink_to", lambda self, target: os.link(tmp_path / "none", self))
    hook._save_checkpoint_with_step(resumed, 2, {})
    assert saved.pop() == ["epoch_1.pth"]


def test_the_same_command_gives_the_same_weights(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    stage2(config, work_dir=str(tmp_path), **{"train_cfg.max_epochs": 1})
    same(tmp_path / "iter_1.pth", undisturbed / "iter_1.pth")


@pytest.mark.parametrize("step", [2, 6])
def test_resumed_at_any_step(config: Path, undisturbed: Path, tmp_path: Path, step: int) -> None:
    """Inside an epoch, and at its end."""
    shutil.copy(undisturbed / f"iter_{step}.pth", tmp_path / "start.pth")
    stage2(config, resume=str(tmp_path / "start.pth"), work_dir=str(tmp_path))
    assert read_steps(tmp_path) == {n: ids for n, ids in read_steps(undisturbed).items() if n >= step}
    same(tmp_path / "iter_12.pth", undisturbed / "iter_12.pth")


@pytest.mark.slow
def test_two_ranks_make_the_same_steps(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """One sample on each of two ranks, then resumed inside an epoch on one rank."""
    finished(train(config, tmp_path, ranks=2, batch=1))
    assert len(list(tmp_path.glob("steps-*.jsonl"))) == 2
    assert read_steps(tmp_path) == read_steps(undisturbed)
    other = tmp_path / "other"
    stage2(config, resume=str(tmp_path / "iter_4.pth"), work_dir=str(other))
    assert read_steps(other) == {n: ids for n, ids in read_steps(undisturbed).items() if n >= 4}


@pytest.mark.slow
def test_a_rank_that_dies_ends_all(config: Path, tmp_path: Path) -> None:
    process = train(config, tmp_path, ranks=2, batch=1)
    kill_a_rank(process, (tmp_path / "steps-1.jsonl").exists)


def test_the_batch_size_may_not_change_inside_an_epoch(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    options = {"train_dataloader.batch_size": 4, "work_dir": str(tmp_path)}
    with pytest.raises(StudentError, match="with 2 samples per step, this run has 4"):
        stage2(config, resume=str(undisturbed / "iter_4.pth"), **options)
    assert stage2(config, resume=str(undisturbed / "iter_6.pth"), **options)["epochs"] == 2


def test_the_order_may_not_change_inside_an_epoch(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Another seed would repeat some samples and skip others. It is allowed from the next epoch on."""
    options = {"randomness.seed": 77, "work_dir": str(tmp_path)}
    with pytest.raises(StudentError, match="other batches than this config"):
        stage2(config, resume=str(undisturbed / "iter_4.pth"), **options)
    assert stage2(config, resume=str(undisturbed / "iter_6.pth"), **options)["epochs"] == 2
