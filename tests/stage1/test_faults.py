"""Faults around stage 1: full disks, other writers, unusual paths, NaN of the teacher. Committed data is kept."""

from __future__ import annotations

import resource
import shutil
import signal
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import stage1_cache_teacher
from pipeline.cli.command import guarded
from pipeline.errors import CacheError, CodecError
from pipeline.integrity.verify import verify
from pipeline.records import TeacherOutput
from pipeline.storage.lock import locked
from pipeline.teacher.model import Teacher
from tests.helpers.configs import make_config
from tests.helpers.datasets import make_dataset
from tests.helpers.detectors import detector
from tests.helpers.forks import exit_code, in_child
from tests.helpers.launch import start_stage, wait_for
from tests.helpers.stages import stage1, stage2, tree


def test_a_locked_cache_is_left_alone(made: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    (root / "pass-0/shard-00000.json").unlink()
    before = tree(root)
    with locked(root), pytest.raises(CacheError, match="another process is writing this cache"):
        stage1(made["frs"], **{"cache.dir": str(root)})
    assert tree(root) == before


@pytest.mark.slow
def test_a_second_writer_is_refused(made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path) -> None:
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    first = start_stage(1, config)
    wait_for(first, tmp_path / "cache/pass-0/plan.json")
    first.send_signal(signal.SIGSTOP)  # keeps the lock
    second = start_stage(1, config)
    _, err = second.communicate(timeout=120)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and "another process is writing this cache" in err
    assert first.wait(timeout=120) == 0
    assert tree(tmp_path / "cache") == tree(made["frs"].parent / "cache")


@pytest.mark.parametrize("size", [9000, pytest.param(25000, marks=pytest.mark.slow)])
def test_a_full_disk(made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path, size: int) -> None:
    """A file cannot grow beyond `size` bytes: as on a full disk, a short write and then an error."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    (tmp_path / "cache").mkdir()
    for name in ("gate.json", "plan.json"):  # skip the gate, where mmdet writes temporary files
        shutil.copy(made["frs"].parent / "cache" / name, tmp_path / "cache")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        sys.argv = ["stage1_cache_teacher.py", "--config", str(config)]
        with open(tmp_path / "stderr", "w") as file, redirect_stderr(file):
            guarded(stage1_cache_teacher.main)

    assert exit_code(in_child(limited)) == 2
    err = (tmp_path / "stderr").read_text()
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    assert str(tmp_path / "cache") in line and "Rerun the same command to resume" in line
    expected = tree(made["frs"].parent / "cache")
    found = tree(tmp_path / "cache")
    assert all(expected.get(name) == sha for name, sha in found.items() if ".tmp/" not in name)
    stage1(config)
    assert tree(tmp_path / "cache") == expected


@pytest.mark.parametrize("name", ["spaces and кэш-キャッシュ", pytest.param("relative", marks=pytest.mark.slow)])
def test_any_path(
    made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = make_config(data, teacher, detector("retinanet"), tmp_path / "w", "frs")
    monkeypatch.chdir(tmp_path)
    where = f"./{name}/cache" if name == "relative" else str(tmp_path / name / "cache")
    stage1(config, **{"cache.dir": where})
    assert tree(Path(where)) == tree(made["frs"].parent / "cache") and verify(where)
    assert stage2(config, **{"cache.dir": where, "work_dir": str(tmp_path / name / "run")})["images"] == 12


@pytest.mark.parametrize(("value", "calibration"), [(float("nan"), True), (float("inf"), False)])
def test_a_teacher_with_nan_or_infinity(
    teacher: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, calibration: bool
) -> None:
    """In one image and level: the error names it, during or after calibration, and nothing of it is committed."""
    data = make_dataset(tmp_path / "data", images=6)
    cv2.imwrite(str(data / "images" / "003.jpg"), np.full((72, 96, 3), 201, np.uint8))
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    run_teacher = Teacher.padded_together

    def add_value(self: Teacher, views: Any) -> TeacherOutput:
        output = run_teacher(self, views)
        for b, view in enumerate(views):
            if view.float().std() < 1 and (calibration or (tmp_path / "cache/codec.json").exists()):
                output.features[2][b, 5, 0, 0] = value
        return output

    monkeypatch.setattr(Teacher, "padded_together", add_value)
    with pytest.raises(CodecError, match=r"image 103 .*view \d.*level 2: NaN or infinity in the teacher's output"):
        stage1(config, **{"cache.calibration_views": 12})
    assert not list((tmp_path / "cache").glob("**/*.tmp")) and not (tmp_path / "cache/pass-1").exists()


def test_a_teacher_that_fails_at_a_shards_begin_leaves_the_shards_before(
    made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch of the shard before is still being encoded at that time."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    run_teacher, calls = Teacher.padded_together, iter(range(100))

    def fail(self: Teacher, views: Any) -> TeacherOutput:
        if (tmp_path / "cache/codec.json").exists() and next(calls) == 2:
            raise RuntimeError("out of memory")
        return run_teacher(self, views)

    monkeypatch.setattr(Teacher, "padded_together", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        stage1(config)

    kept = tree(tmp_path / "cache")
    assert sorted(name for name in kept if name.endswith(".tar")) == [f"pass-0/shard-0000{n}.tar" for n in (0, 1)]
    assert kept.items() <= tree(made["frs"].parent / "cache").items()


def test_fp16_overflow_is_infinity() -> None:
    """A value beyond the range of fp16 is infinity once it is stored."""
    big = torch.full((2, 1, 2, 2), 7e4)
    big[0] = 1
    output = TeacherOutput([big.half().float()], [torch.zeros(2, 1, 2, 2)], [torch.zeros(2, 2, 2)])
    assert output.unsound() == (1, 0)
