"""benchmarks/gpu.py on a machine without a GPU: one clear line, or every part at toy size."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_page
from tests.helpers.paths import ROOT

PARTS = ["prepare", "tests", "codec", "step", "stage1", "calibration", "ledger"]


def started(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = started("--out", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    (line,) = done.stderr.splitlines()
    assert re.match(r"error: torch \S+ finds no CUDA device", line) and "--device cpu --tiny" in line
    assert not done.stdout


@pytest.mark.slow
def test_every_part_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = started(*toy_size(tmp_path))
    check_toy_run(tmp_path / "out")
    assert done.returncode == 0 and not done.stderr


def toy_size(folder: Path) -> list[str]:
    return ["--out", str(folder / "out"), "--work", str(folder / "work"), "--device", "cpu", "--tiny"]


def check_toy_run(out: Path) -> None:
    """Every part is done and has measured what the page shows."""
    found = json.loads((out / "gpu.json").read_text())
    logs = {path.name: path.read_text()[-1500:] for path in out.glob("*.log")}
    assert [(part["name"], part["status"]) for part in found["parts"]] == [(name, "done") for name in PARTS], logs
    measured = {part["name"]: part.get("measured") for part in found["parts"]}
    assert measured["tests"]["tests"] > measured["tests"]["skipped"] and measured["tests"]["failures"] == 0
    assert {row["part"] for row in measured["codec"]["rows"]} == {"encode", "decode"}
    assert all(row["ms"] > 0 and row["operations"] > 100 for row in measured["codec"]["rows"])
    assert measured["codec"]["rows"][1]["frs_cpu_difference"] == 0
    assert {row["variant"] for row in measured["step"]["rows"]} == {"alone", "live", "cached"}
    assert min(measured["step"]["ratios"][0][key] for key in ("cached_over_alone", "live_over_cached")) > 0
    assert measured["stage1"]["stage1_over_bare"] > 0 and measured["calibration"]["rows"][0]["seconds"] > 0
    assert measured["ledger"]["rows"][0]["live_h"] > 0
    page = (out / "gpu.md").read_text()
    assert "| tests -m gpu: failed | <= 0 | 0 | yes |" in page and "Toy sizes" in page


def test_a_part_that_fails_or_runs_over_does_not_stop_the_next(tmp_path: Path) -> None:
    args = argparse.Namespace(out=tmp_path, device="cpu")
    write = f"import pathlib, time; pathlib.Path({str(tmp_path / 'some.json')!r}).write_text('[1]'); time.sleep(60)"
    over = gpu.run(gpu.Part("long", 1, [["-c", write]], "some.json"), args, 2.0)
    assert over["status"] == "exceeded its time" and over["seconds"] < 30
    assert over["measured"] == [1], "what a part wrote before its time was over is kept"
    wrong = gpu.run(gpu.Part("wrong", 1, [["-c", "raise SystemExit(3)"], ["-c", "print('not reached')"]]), args, 20.0)
    assert wrong["status"] == "failed with code 3" and "measured" not in wrong
    assert "not reached" not in (tmp_path / "wrong.log").read_text()
    assert gpu.run(gpu.Part("fine", 1, [["-c", "print('reached')"]]), args, 20.0)["status"] == "done"
    assert (tmp_path / "fine.log").read_text() == "reached\n"


def test_the_page_shows_what_each_figure_must_reach() -> None:
    """The committed page is the empty table, or that of a real run; a figure beyond its bound is marked."""
    committed = (ROOT / "docs" / "results" / "gpu.md").read_text()
    saved = ROOT / "docs" / "results" / "gpu.json"
    assert committed == gpu_page.page(json.loads(saved.read_text()) if saved.is_file() else {})
    ratios = [
        {
            "batches": "loaded",
            "batch_size": 8,
            "precision": "amp",
            "cached_over_alone": 1.2,
            "live_over_cached": 1.5,
            "memory_cached_over_alone": 1.01,
            "loader_wait_share": 0.0,
        }
    ]
    figures = gpu_page.step_figures("loaded", 8, "amp")
    cells = [figure.cells({"step": {"ratios": ratios}}) for figure in figures]
    assert [row[-1] for row in cells] == ["NO", "yes", "yes", "yes"] and cells[0][1:3] == ["<= 1.1", "1.2"]
    assert [figure.cells({})[2:] for figure in figures] == [["", ""]] * 4
