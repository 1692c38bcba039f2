"""A full disk leaves no half file of a verb, and keeps the file that was there."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.launch import environment
from tests.helpers.paths import ROOT
from tests.helpers.verbs import Run, verb_runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    return verb_runner(monkeypatch, capsys)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_report(run: Run, made: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for before in (None, "the page before"):
        if before:
            page.write_text(before)
        with full_disk(5000):
            code, _, err = run("report", made["frs"].parent / "cache", "-o", page)
        assert code == 2 and err.startswith(f"error: {page}: File too large") and err.count("\n") == 1
        assert (page.read_text() if page.exists() else None) == before and len(list(tmp_path.iterdir())) == bool(before)


def test_export(run: Run, made: dict[str, Path], tmp_path: Path) -> None:
    """view.json is there only if all files are of the view that it describes."""
    words = ["export", made["frs"].parent / "cache", "-o", tmp_path, "--image-id"]
    assert run(*words, 100)[0] == 0
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in whole:
        (tmp_path / name).write_bytes(b"before")
    with full_disk(4000):
        code, _, err = run(*words, 100)
    assert code == 2 and "File too large" in err and not (tmp_path / "view.json").exists()
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found.keys() == whole.keys() - {"view.json"}
    assert all(content in (b"before", whole[name]) for name, content in found.items())
    assert run(*words, 100)[0] == 0 and {p.name: p.read_bytes() for p in tmp_path.iterdir()} == whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["info"], ["verify", "--json"]])
def test_output_into_a_file(made: dict[str, Path], words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words, made["frs"].parent / "cache"],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
            check=False,
            text=True,
        )
    assert done.returncode == 2 and done.stderr.startswith("error: standard output: No space left on device")
    assert done.stderr.count("\n") == 1
