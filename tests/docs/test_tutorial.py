"""docs/tutorial.md, from top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.mark.slow
def test_the_tutorial_from_top_to_bottom(tmp_path: Path) -> None:
    """Files are written and commands run as they stand, in a folder of their own."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    outputs = []
    for kind, code in re.findall(r"```(python|sh)\n(.*?)```", TUTORIAL.read_text(), re.S):
        if kind == "python":
            path = tmp_path / code.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)
            continue
        done = subprocess.run(["bash", "-euc", code], cwd=tmp_path, env=environment, capture_output=True, text=True)  # noqa: PLW1510
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
    whole = "\n".join(outputs)
    assert re.search(r"cache +my/cache", whole) and re.search(r"student +mAP 0\.[1-9]", whole)
    assert len((tmp_path / "my/read.txt").read_text().splitlines()) == 320
    assert (tmp_path / "my/report.html").stat().st_size > 100_000
    assert len(list((tmp_path / "my/export").iterdir())) == 31
