"""A checkpoint costs no more than its size justifies, whatever it declares."""

from __future__ import annotations

import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.budget import BUDGET
from pipeline.errors import TeacherError
from pipeline.mmdet_compat.registry import Config
from pipeline.stage2.resume import find_checkpoint, guard_loading
from pipeline.teacher.weights import load_plain, read_checkpoint
from tests.helpers.checkpoints import mmdet1, mmdet3
from tests.helpers.memory import cost_of, cost_of_verb, refused

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def deflated(path: Path, megabytes: int) -> Path:
    """Write zeros as torch.save does, then compress them."""
    plain = path.with_suffix(".plain")
    torch.save({"state_dict": {"a.weight": torch.zeros(megabytes << 18)}}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            with source.open(info) as read, target.open(info.filename, "w") as write:
                shutil.copyfileobj(read, write, 1 << 20)
    plain.unlink()
    return path


def overlapping(path: Path) -> Path:
    """Write a zip whose directory has the same tensor many times."""
    torch.save({"state_dict": {"a.weight": torch.zeros(1 << 20)}}, path)
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, count = archive.start_dir, len(archive.infolist())
    end = raw.rindex(b"PK\5\6")
    entries = [b"PK\1\2" + entry for entry in raw[start:end].split(b"PK\1\2")[1:]]
    entries[-1] = entries[-1].split(b"PK\6\6")[0]
    (tensor,) = (entry for entry in entries if b"/data/0" in entry)
    many = [tensor.replace(b"/data/0", b"/data/%c" % (65 + n)) for n in range(30)]
    directory = b"".join([*entries, *many])
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count + 30, count + 30, len(directory), start, 0)
    path.write_bytes(raw[:start] + directory + tail)
    return path


def zipped(path: Path, content: bytes) -> Path:
    """Write a zip of torch with any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return path


def legacy(path: Path, content: bytes) -> Path:
    """Write the older format of torch with any pickle."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(parts) + content + pickle.dumps([], 2))
    return path


MANY = b"\x80\x02(" + b"]" * (BUDGET.pickle_steps + 1) + b"l."
SIZED = b"\x80\x02c__builtin__\nbytearray\n(c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftRtR."
FORGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "deflated": (lambda path: deflated(path, 256), "256 MiB in a file of 0.* does not compress"),
    "overlapping": (overlapping, "MiB in a file of 4"),
    "a pickle of many lists": (lambda path: zipped(path, MANY), "steps of its pickle: expected at most"),
    "an old pickle of many lists": (lambda path: legacy(path, MANY), "steps of its pickle: expected at most"),
    "a size in a pickle": (lambda path: zipped(path, SIZED), "bytearray, which can declare any size"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_checkpoint(tmp_path: Path, name: str) -> None:
    make, message = FORGED[name]
    path = make(tmp_path / "epoch_1.pth")

    def load() -> None:
        with pytest.raises(TeacherError, match=f"epoch_1.pth: not loaded: .*{message}"):
            load_plain(path, mapped=name == "overlapping")

    cost = cost_of(load, log=tmp_path / "log")
    assert cost.code == 0 and cost.grown < 100, cost


def test_each_place_that_loads_checkpoints(made: dict[str, Path], tmp_path: Path) -> None:
    """The teacher of stage 1, load_from and --resume of stage 2, and what mmengine loads by itself."""
    path = deflated(tmp_path / "epoch_1.pth", 256)
    config = made["frs"]
    log, options = tmp_path / "log", ("--cfg-options", f"work_dir={tmp_path / 'run'}")
    refused(
        cost_of_verb("stage1", "--config", config, *options, f"teacher.checkpoint={path}", log=log), "compress", 400
    )
    refused(cost_of_verb("stage2", "--config", config, *options, f"load_from={path}", log=log), "compress", 400)
    both = ("resume=True", f"load_from={path}")
    refused(cost_of_verb("stage2", "--config", config, *options, *both, log=log), "compress", 400)
    run = Config({"work_dir": str(tmp_path), "resume": True})

    def resume() -> None:
        from mmengine.runner import CheckpointLoader

        with pytest.raises(Exception, match="none of its 1 "):
            find_checkpoint(run)
        guard_loading()
        with pytest.raises(TeacherError, match="does not compress"):
            CheckpointLoader.load_checkpoint(str(path))

    cost = cost_of(resume, log=log)
    assert cost.code == 0 and cost.grown < 200, cost


@pytest.mark.parametrize("write", [mmdet1, mmdet3])
def test_real_checkpoints_are_loaded(tmp_path: Path, write: Callable[..., Any]) -> None:
    write(STATE, tmp_path / "a.pth")
    state, _ = read_checkpoint(tmp_path / "a.pth")
    assert all(torch.equal(state[key], value) for key, value in STATE.items())
    small = deflated(tmp_path / "b.pth", 1)
    assert read_checkpoint(small)[0]["a.weight"].numel() == 1 << 18
