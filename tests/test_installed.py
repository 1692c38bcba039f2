"""What is installed: one opencv, and a wheel that has all of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.paths import ROOT


def test_without_libgl() -> None:
    """Bare machines have no libGL: of the two opencv wheels only the headless one may be installed."""
    from importlib.metadata import PackageNotFoundError, version

    assert version("opencv-python-headless")
    with pytest.raises(PackageNotFoundError):
        version("opencv-python")
    assert np.asarray(cv2.resize(np.zeros((4, 4, 3), np.uint8), (2, 2))).shape == (2, 2, 3)
    linked = Path("/proc/self/maps").read_text()
    assert "libGL.so" not in linked


def test_upstreams_requirements() -> None:
    """The packages of pyproject.toml with the same limits, and upstream's mmdet for the onedl packages."""
    lines = (ROOT / "tests" / "upstream_requirements.txt").read_text().splitlines()
    listed = {line.partition("#")[0].strip() for line in lines} - {""}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {line for line in project["dependencies"] if not line.startswith("onedl-")}
    others = {re.split("[=<]", line)[0] for line in listed - needed - set(project["optional-dependencies"]["dev"])}

    assert needed < listed and "onedl" not in "".join(listed)
    assert others == {"mmdet", "mmcv-lite", "mmengine", "setuptools"}


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    """`pip install .` brings the command and everything that the package needs beside its code."""
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".git", "work_dirs", ".venv*"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("frs_teacher_cache-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "frs-cache = pipeline.cli.main:main" in archive.read(entry).decode()
        archive.extractall(tmp_path / "installed")
    ours = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "pipeline").rglob("*") if p.is_file() and p.suffix != ".pyc"
    }
    assert ours <= set(names)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"],
        cwd=tmp_path / "installed",
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        check=True,
    )
    assert "frs-cache" in done.stdout
