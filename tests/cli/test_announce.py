"""One line is logged before work that takes longer than a few seconds, and none before quick work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.errors import CacheError
from pipeline.progress import Silent
from pipeline.recipe import announce_inputs
from pipeline.stage1.run import cache_teacher
from pipeline.stage2 import train
from pipeline.storage.lock import announce_lock
from pipeline.storage.urls import place
from pipeline.teacher.zoo import TeacherSpec
from tests.helpers.servers import web_server
from tests.helpers.verbs import Run, verb_runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    return verb_runner(monkeypatch, capsys)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower all limits, so that the small test data counts as large."""
    for name in (
        "recipe.LARGE_JSON",
        "recipe.LARGE_FILE",
        "integrity.verify.LARGE_FILE",
        "integrity.repair.LARGE_FILE",
    ):
        monkeypatch.setattr(f"pipeline.{name}", 0)
    monkeypatch.setattr("pipeline.stage1.passes.MANY_IMAGES", 1)


def inputs_of(config: Path) -> list[str]:
    lines: list[str] = []
    announce_inputs(*load_config(str(config)), lines.append)
    return lines


def test_small_inputs(made: dict[str, Path]) -> None:
    assert inputs_of(made["frs"]) == []


@pytest.mark.usefixtures("large")
def test_large_inputs(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reading, hashing = inputs_of(made["frs"])
    assert reading.startswith("images   reading /") and reading.endswith("annotations.json, 0 MB")
    assert hashing.startswith("teacher  hashing /") and hashing.endswith(".pth, 1 MB")
    spec = TeacherSpec("zoo", None, tmp_path / "weights.pth", "https://example.org/weights.pth")  # type: ignore[arg-type]
    monkeypatch.setattr("pipeline.recipe.find_teacher", lambda _: spec)
    assert inputs_of(made["frs"])[1:] == [
        f"teacher  weights are missing: {spec.checkpoint}, from https://example.org/weights.pth"
    ]


@pytest.mark.parametrize("many", [False, True])
def test_stage_1(made: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest, many: bool) -> None:
    cache = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    shutil.rmtree(cache / "pass-1")
    (cache / "gate.json").unlink()
    if many:
        request.getfixturevalue("large")
    lines: list[str] = []
    cfg, sections = load_config(str(made["frs"]), {"cache.dir": str(cache)})
    cache_teacher(cfg, sections, lines.append, Silent())
    starts = [line.split(" ")[0] for line in lines]
    assert "plan     pass 1: sizes of the views of 12 images" in lines or not many
    assert starts == [*["images", "teacher"] * many, "images", "views", "teacher", "gate", "gate", *["plan"] * many]
    assert "gate     measuring the mAP on up to 2 val images" in lines


def test_stage_2(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, large: None) -> None:
    lines: list[str] = []

    def read(*_: Any) -> None:
        raise CacheError(f"after {len(lines)} lines")

    monkeypatch.setattr(train, "print_log", lambda text, logger: lines.append(text))
    monkeypatch.setattr(train, "prepare_teacher_data", read)
    cfg, sections = load_config(str(made["frs"]))
    with pytest.raises(CacheError, match="after 2 lines"):
        train.train_student(cfg, sections)
    assert [line.split(" ")[0] for line in lines] == ["images", "teacher"]


def test_verify(run: Run, made: dict[str, Path], large: None) -> None:
    """The lines go to standard error, so that --json stays JSON."""
    code, out, err = run("verify", made["frs"].parent / "cache", "--json", "--config", made["frs"])
    assert code == 0 and json.loads(out)["whole"]
    assert [line.split("  ")[0] for line in err.splitlines()] == ["images", "teacher", "pass 0", "pass 1"]


def test_repair(run: Run, made: dict[str, Path], large: None) -> None:
    code, out, _ = run("repair", "--config", made["frs"])
    assert code == 0 and "cache    reading " in out and out.endswith("intact   nothing to repair\n")


def test_a_lock_in_an_object_store(tmp_path: Path) -> None:
    """Stage 1 watches it for up to 45 s. A local lock is never watched."""
    lines: list[str] = []
    with web_server(tmp_path) as server:
        announce_lock(place(server.address), lines.append)
        assert not lines
        (tmp_path / ".lock").write_text("{}")
        announce_lock(place(server.address), lines.append)
        announce_lock(tmp_path, lines.append)
        assert lines == [f"lock     {server.address}/.lock exists; watching whether its owner is running"]
