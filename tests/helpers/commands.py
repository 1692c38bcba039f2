"""Every command that a document, a config's header, a script's first lines or a --help example tells people to type."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

from pipeline.cli.main import COMMANDS
from tests.helpers.paths import ROOT

STARTS = ("python ", "torchrun ", "frs-cache ", "make ", "pip ", "tar ", "eval ", ". ", ".venv/")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("d*/**/*.md"))]
FOLDERS = ("configs", "demo", "benchmarks", "tests/torture", "docs")
SCRIPTS = sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py"))
STAGES = {"stage1_cache_teacher.py": "stage1", "stage2_distill.py": "stage2"}


def typed(line: str) -> str:
    """What is typed of a line: no prompt, no remark, no `...` for more flags."""
    line = re.split(r"\s{2,}[#(]| # ", line.strip().removeprefix("$ "))[0]
    return re.sub(r"(?<!--config)( \.\.\.)+$", "", line.rstrip())


def of_page(path: Path) -> list[str]:
    """Commands of a Markdown page: of a shell block all (behind prompts, if any), of indented lines and inline code."""
    text = path.read_text()
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        lines = [line for line in joined(block) if line.strip()]
        prompts = [line for line in lines if line.startswith("$ ")]
        found += (prompts or lines) if language in ("", "sh") else []
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    found += [line for line in joined(prose) if line.startswith("    ") and line.strip().startswith(STARTS)]
    found += [code for code in re.findall(r"(?<!`)`([^`\n]+)`", prose) if code.startswith(STARTS)]
    return [typed(line) for line in found]


def of_script(path: Path) -> list[str]:
    """Commands of a module's docstring, behind a label or not."""
    lines = joined(ast.get_docstring(ast.parse(path.read_text()), clean=False) or "")
    found = [re.search(r"(?:^|\s|`)((?:python (?:-m )?[\w./]+|torchrun) [^`]+)", line) for line in lines]
    return [typed(match[1]) for match in found if match]


def joined(text: str) -> list[str]:
    """Lines, those that go on behind a backslash as one."""
    return re.sub(r" *\\\n *", " ", text).splitlines()


def of_help() -> list[str]:
    """The examples of every verb."""
    return [line for name, verb in COMMANDS.items() for line in joined(verb.example.format(prog=f"frs-cache {name}"))]


def shown() -> dict[str, str]:
    """Every command, and where it stands first."""
    found: dict[str, str] = {}
    pages = [(path, of_page(path)) for path in PAGES] + [(path, of_script(path)) for path in SCRIPTS]
    for place, lines in [(str(path.relative_to(ROOT)), lines) for path, lines in pages] + [("--help", of_help())]:
        for line in lines:
            found.setdefault(line, place)
    return found


def ours(words: list[str]) -> list[str] | None:
    """Verb and arguments of a command of this project; None where it is another program's."""
    if words[0] == "frs-cache":
        return words[1:]
    if words[:3] == ["python", "-m", "pipeline"]:
        return words[3:]
    if words[0] == "python" and words[1] in STAGES:
        return [STAGES[words[1]], *words[2:]]
    return None


def split(line: str) -> list[str]:
    """Words of a command, without what a `>` sends away."""
    words = shlex.split(line, comments=True)
    return words[: words.index(">")] if ">" in words else words
