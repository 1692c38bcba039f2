"""`make setup` leaves compiling to Python's first import, but not where Python may not keep what it compiles."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kept", [True, False])
def test_setup_compiles_only_where_an_import_would_compile_each_time(tmp_path: Path, kept: bool) -> None:
    variable = "PYTHONDONTWRITEBYTECODE"
    environment = {key: value for key, value in os.environ.items() if key != variable}
    environment |= {} if kept else {variable: "1"}

    command = ["make", "--dry-run", "setup", f"VENV={tmp_path}/venv"]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    installs = [line for line in shown.splitlines() if "pip install" in line]
    assert len(installs) == 3 and all(("--no-compile" in line) == kept for line in installs)
