"""Commands in the documents: all of them are ones that the parsers take; those of the tutorial run, in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import parser

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("tutorial", "coco", "faq"))]
SCRIPTS = {"stage1_cache_teacher.py": "stage1", "stage2_distill.py": "stage2"}


def commands(text: str) -> list[str]:
    """Every command of a page, continuation lines joined; inside a sentence those that have arguments."""
    lines = re.sub(r" *\\\n *", " ", text).splitlines()
    lines += [code for code in re.findall(r"`([^`\n]+)`", text) if len(code.split()) > 4]
    found = [line.strip().removeprefix("$ ").split("   #")[0].split("     #")[0] for line in lines]
    starts = ("python ", "torchrun ", "frs-cache ", "make ", "pip ")
    return [line for line in found if line.startswith(starts)]


def verb(words: list[str]) -> list[str] | None:
    """The arguments of our own parser in a command; None where it is another program's."""
    if words[0] == "torchrun":
        rest = words[3 if words[1].startswith("--") and "=" not in words[1] else 2 :]
        while rest[0].startswith("--") and rest[0] != "-m":
            rest = rest[1:] if "=" in rest[0] else rest[2:]
        return verb(["python", *rest])
    if words[0] == "frs-cache":
        return words[1:]
    if words[:3] == ["python", "-m", "pipeline"]:
        return words[3:]
    if words[0] == "python" and Path(words[1]).name in SCRIPTS:
        return [SCRIPTS[words[1]], *words[2:]]
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_ones_that_we_take(page: Path) -> None:
    """Verbs, flags, configs and scripts of every page exist."""
    lines = commands(page.read_text())
    assert len(lines) > 2
    made_here = set(re.findall(r"^# (my/\S+\.py)$", page.read_text(), re.M))
    for line in lines:
        words = shlex.split(line, comments=True)
        words = words[: words.index(">")] if ">" in words else words
        ours = verb(words)
        if ours is not None:
            args = parser("frs-cache").parse_args(ours)  # leaves with code 2 where a flag is unknown
            config = getattr(args, "config", None)
            assert config in (None, "...", "C") or config in made_here or (ROOT / config).is_file(), line
        elif words[0] == "python" and words[1].endswith(".py"):
            assert words[1] in made_here or (ROOT / words[1]).is_file(), line
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line


@pytest.mark.slow
def test_the_tutorial_from_top_to_bottom(tmp_path: Path) -> None:
    """Files are written and commands run as they stand, in a folder of their own."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    told = []
    for kind, code in re.findall(r"```(python|sh)\n(.*?)```", TUTORIAL.read_text(), re.S):
        if kind == "python":
            path = tmp_path / code.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)
            continue
        done = subprocess.run(["bash", "-euc", code], cwd=tmp_path, env=environment, capture_output=True, text=True)  # noqa: PLW1510
        assert done.returncode == 0, done.stdout + done.stderr
        told.append(done.stdout)
    whole = "\n".join(told)
    assert re.search(r"cache +my/cache", whole) and re.search(r"student +mAP 0\.[1-9]", whole)
    assert len((tmp_path / "my/read.txt").read_text().splitlines()) == 320
    assert (tmp_path / "my/report.html").stat().st_size > 100_000
    assert len(list((tmp_path / "my/export").iterdir())) == 31
