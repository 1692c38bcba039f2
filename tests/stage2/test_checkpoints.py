"""Which checkpoint a run resumes from, and that it never touches another run's files."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cache.cache import Cache
from pipeline.config import load_config
from pipeline.errors import StaleCache
from pipeline.mmdet_compat.registry import METRICS, Config
from pipeline.stage2.resume import checkpoint_folder, find_checkpoint
from pipeline.stage2.settings import apply_flags
from pipeline.stage2.train import train_student
from pipeline.tools.report.students import find_students

BEST = {"default_hooks.checkpoint.save_best": "coco/bbox_mAP", "default_hooks.checkpoint.rule": "greater"}


def run(config: Path, folder: Path, resume: str | None = None, **options: Any) -> dict[str, Any]:
    """Train in `folder`. Returns the summary."""
    cfg, sections = load_config(str(config), options)
    apply_flags(cfg, str(config), str(folder), resume, amp=False, auto_scale_lr=False, launcher="none")
    return train_student(cfg, sections)


@pytest.fixture(scope="module", autouse=True)
def rising_map() -> Iterator[None]:
    """Each evaluation finds a better student: these random ones detect nothing, and mmengine keeps no best of them."""
    scores = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            METRICS.get("CocoMetric"), "compute_metrics", lambda self, results: {"bbox_mAP": next(scores) / 1000}
        )
        yield


@pytest.fixture(scope="module")
def first(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch with a best checkpoint."""
    folder = tmp_path_factory.mktemp("first")
    run(made["frs"], folder, **BEST)
    assert list(folder.glob("best_*.pth")) and (folder / "epoch_1.pth").is_file()
    return folder


def test_load_from_leaves_the_other_run_alone(made: dict[str, Path], first: Path, tmp_path: Path) -> None:
    """mmengine deletes the best checkpoint that it knows of when a better one comes."""
    source = tmp_path / "source"
    shutil.copytree(first, source)
    content = torch.load(source / "epoch_1.pth", weights_only=True)
    (best,) = source.glob("best_*.pth")
    content["frs"]["runtime_info"] |= {"best_score": -1.0, "best_ckpt": str(best)}
    torch.save(content, source / "epoch_1.pth")
    before = sorted(path.name for path in source.rglob("*"))
    run(made["frs"], tmp_path / "second", load_from=str(source / "epoch_1.pth"), **BEST)
    assert sorted(path.name for path in source.rglob("*")) == before
    assert list((tmp_path / "second").glob("best_*.pth"))


def test_resume_deletes_nothing_outside_the_work_dir(made: dict[str, Path], first: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim.pth"
    victim.write_bytes(b"precious")
    shutil.copytree(first, tmp_path / "copy")
    path = tmp_path / "copy" / "epoch_1.pth"
    content = torch.load(path, weights_only=True)
    content["frs"]["runtime_info"] |= {"best_score": -1.0, "best_ckpt": str(victim), "last_ckpt": str(victim)}
    torch.save(content, path)
    run(made["frs"], tmp_path / "copy", "auto", **{"train_cfg.max_epochs": 2}, **BEST)
    assert victim.read_bytes() == b"precious"


def found(folder: Path, **hook: Any) -> str | None:
    cfg = Config({"resume": True, "work_dir": str(folder), "default_hooks": {"checkpoint": hook}})
    find_checkpoint(cfg)
    return cfg.get("load_from")


def test_the_most_steps_win_whatever_the_clock_says(first: Path, tmp_path: Path) -> None:
    content = torch.load(first / "epoch_1.pth", weights_only=True)
    for steps in (3, 12, 9):
        content["meta"]["iter"] = steps
        torch.save(content, tmp_path / f"iter_{steps}.pth")
    for path, stamp in (("iter_3.pth", 3000), ("iter_9.pth", 2000), ("iter_12.pth", 1000)):
        os.utime(tmp_path / path, (stamp, stamp))
    assert found(tmp_path) == str(tmp_path / "iter_12.pth")
    (tmp_path / "iter_12.pth").write_bytes(
        (tmp_path / "iter_12.pth").read_bytes()[:1000]
    )  # a kill while it was written
    assert found(tmp_path) == str(tmp_path / "iter_9.pth")


def test_another_folder_for_checkpoints(made: dict[str, Path], tmp_path: Path) -> None:
    """mmengine's out_dir: --resume looks there, and compares the cache as ever."""
    out = {"default_hooks.checkpoint.out_dir": str(tmp_path / "out")}
    run(made["frs"], tmp_path / "run", **out)
    assert (tmp_path / "out" / "run" / "epoch_1.pth").is_file()
    again = run(made["frs"], tmp_path / "run", "auto", **out, **{"train_cfg.max_epochs": 2})
    assert again["epochs"] == 2 and again["images"] == 24 / 2
    with pytest.raises(StaleCache, match="cache content"):
        run(made["lossless"], tmp_path / "run", "auto", **out, **{"train_cfg.max_epochs": 3})


def test_a_student_resumes_from_a_grown_cache(made: dict[str, Path], tmp_path: Path) -> None:
    """Its own pass must be unchanged; another one may have come since."""
    shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache")
    (tmp_path / "cache" / "pass-1").rename(tmp_path / "later")
    cache = {"cache.dir": str(tmp_path / "cache")}
    alone = run(made["frs"], tmp_path / "run", **cache, **{"cache.passes": 1})
    (tmp_path / "later").rename(tmp_path / "cache" / "pass-1")
    again = run(made["frs"], tmp_path / "run", "auto", **cache, **{"train_cfg.max_epochs": 2})
    assert again["epochs"] == 2 and again["content"] != alone["content"] == content_of(tmp_path / "run" / "epoch_1.pth")
    (student,) = find_students([str(tmp_path / "run")], Cache(tmp_path / "cache"))
    assert student.teacher == "this cache"
    other = torch.load(tmp_path / "run" / "epoch_2.pth", weights_only=True)
    other["frs"]["passes"]["0"] = "0" * 64
    torch.save(other, tmp_path / "run" / "epoch_2.pth")
    with pytest.raises(StaleCache, match="trained from cache content 0000000000000000 of pass 0, this"):
        run(made["frs"], tmp_path / "run", "auto", **cache, **{"train_cfg.max_epochs": 3})


def test_a_checkpoint_from_before_passes_were_recorded(made: dict[str, Path], first: Path, tmp_path: Path) -> None:
    content = torch.load(first / "epoch_1.pth", weights_only=True)
    del content["frs"]["passes"]
    torch.save(content, tmp_path / "epoch_1.pth")
    assert run(made["frs"], tmp_path, "auto", **{"train_cfg.max_epochs": 2})["epochs"] == 2


def content_of(path: Path) -> str:
    return torch.load(path, weights_only=True)["frs"]["content"]


def test_nothing_to_resume_is_a_new_run(made: dict[str, Path], tmp_path: Path) -> None:
    assert run(made["frs"], tmp_path, "auto")["epochs"] == 1


def test_checkpoint_folder() -> None:
    cfg = Config({"work_dir": "w/run", "default_hooks": {"checkpoint": {"out_dir": "elsewhere"}}})
    assert checkpoint_folder(cfg) == Path("elsewhere/run")
    assert checkpoint_folder(Config({"work_dir": "w/run"})) == Path("w/run")
