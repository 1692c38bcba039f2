"""Folders that may not be written: a cache still serves, the log goes elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launch import environment
from tests.helpers.paths import ROOT


@pytest.fixture
def read_only(made: dict[str, Path], tmp_path: Path) -> Path:
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("as root a read-only folder is none")
    return root


def without_override(*argv: str) -> subprocess.CompletedProcess:
    """Run Python; root, too, is bound by the modes of files."""
    drop = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, *argv]
    return subprocess.run(command, check=False, cwd=ROOT, env=environment(), capture_output=True, text=True)


def test_a_read_only_cache_serves(read_only: Path) -> None:
    look = "from pipeline.integrity.verify import collect_findings; from pipeline.progress import Silent\n"
    look += f"assert collect_findings({str(read_only)!r}, True, Silent())['whole']; open({str(read_only / 'x')!r}, 'w')"
    refused = without_override("-c", look)
    assert refused.stderr.strip().splitlines()[-1].startswith("PermissionError")


def test_the_log_of_a_cache_that_fills_its_mount(tmp_path: Path) -> None:
    """The folder above is not ours; the cache's own is."""
    (tmp_path / "mnt" / "cache").mkdir(parents=True)
    (tmp_path / "mnt").chmod(0o555)
    keep = f"import os; os.chdir({str(tmp_path)!r}); from pipeline.cli import terminal\n"
    keep += f"terminal.keep_log_beside({str(tmp_path / 'mnt/cache')!r}); terminal.log('kept')"
    done = without_override("-c", keep)
    notice = (
        f"log      work_dirs/cache.log, because {tmp_path}/mnt/cache.log cannot be written; set --log-file to change it"
    )
    assert done.stdout.splitlines() == [notice, "kept"], done.stderr
    assert [line[20:] for line in (tmp_path / "work_dirs/cache.log").read_text().splitlines()] == [notice, "kept"]


@pytest.mark.slow
def test_a_student_of_a_read_only_cache(made: dict[str, Path], read_only: Path, tmp_path: Path) -> None:
    trained = without_override(
        "stage2_distill.py",
        "--config",
        str(made["frs"]),
        "--work-dir",
        str(tmp_path / "run"),
        "--cfg-options",
        f"cache.dir={read_only}",
    )
    assert trained.returncode == 0, trained.stderr[-2000:]
