"""Every command that the documents tell people to type is run, on the tests' small files instead of those it names.

A command that is new in a document is run too, or fails here: what is not run stands in ELSEWHERE, with the reason.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipeline.cli.main import main, parser
from tests.helpers.commands import PAGES, ours, shown, split
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector
from tests.helpers.launch import finished
from tests.helpers.paths import ROOT
from tests.helpers.servers import s3_server

# What a flag is given here, and the cache of a verb. {new} is not there yet, the others are.
VALUES = {
    "--config": ["{config}"],
    "--students": ["{student}"],
    "--compare": ["{lossless}"],
    "--like": ["{cache}"],
    "--work-dir": ["{new}"],
    "-o": ["{new}"],
    "--image-id": ["104"],
    "--seconds": ["5"],
}
CACHES = {
    "info": ["{cache}"],
    "verify": ["{cache}"],
    "export": ["{cache}"],
    "report": ["{cache}"],
    "reencode": ["{lossless}", "{new}"],
}
# So that the default suite has each verb, but those of minutes; all others are `slow`.
QUICK = {
    "plan --config {config}",
    "stage1 --config {config}",
    "stage2 --config {config} --work-dir {new} --auto-scale-lr",
    "info {cache}",
    "verify {cache}",
    "verify {cache} --deep",
    "verify {cache} --deep --config {config}",
    "repair --config {config}",
    "export {cache} --image-id 104 --view 0 -o {new}",
    "report {cache} -o {new}",
    "verify",
    "reencode",
}
PARSED = ("benchmarks/", "tests.torture.")  # minutes to hours each: started, and ended where the flags are parsed
# What the demo's scripts are given behind what stands in the document.
SMALL = {
    "demo/make_data.py": ["--train", "4", "--val", "2"],
    "demo/pretrain_backbone.py": ["--steps", "2", "--batch-size", "4"],
    "demo/train_teacher.py": ["--steps", "2", "--batch-size", "1", "--processes", "1"],
}
ELSEWHERE = {
    ". .venv/bin/activate": "a file of the standard library's venv",
    ".venv/bin/python -m pytest -m slow": "this very suite",
    "pip install .": "tests/test_installed.py builds the wheel and starts it",
    "pip install -r tests/upstream_requirements.txt": "make test-upstream",
    "pip install --no-deps .": "make test-upstream",
    "tar -xf shard-00000.tar": "test_readme.py",
    "mkdir -p out": "test_format_doc.py",
    "tar -xf cache/pass-0/shard-00000.tar -C out": "test_format_doc.py",
    "python my/make_shapes.py": "test_tutorial.py",
    "python my/train_teacher.py": "test_tutorial.py",
}


def groups(words: list[str]) -> Iterator[list[str]]:
    """Words by flag, [flag, value, ...]; the first group has none."""
    starts = [0, *(n for n, word in enumerate(words) if n and word.startswith("-")), len(words)]
    return (words[a:b] for a, b in pairwise(starts))


def here(words: list[str]) -> str:
    """A command with {names} of the tests' files in the place of its own."""
    (verb, *names), *flags = groups(words)
    found = [verb, *(CACHES.get(verb, names) if names else [])]
    for flag, *values in flags:
        if flag == "--cfg-options":
            values = [re.sub(r"local=.*", "local={new}", v) for v in values if not v.endswith("...")]  # noqa: PLW2901
            found += [flag, *values] if values else []
        elif flag != "--amp" or torch.cuda.is_available():  # mmengine's mixed precision wants a GPU
            found += [flag, *(VALUES.get(flag, values) if values or flag == "--compare" else [])]
    return " ".join("small" if word == "Q" else word for word in found)


SHOWN = shown()
OURS = sorted({here(words) for line in SHOWN if (words := ours(split(line)))})
S3 = [line for line in OURS if "s3://" in line]
TORCHRUN = sorted({re.sub(r"configs/\S+|\.\.\.", "{config}", line) for line in SHOWN if line.startswith("torchrun --")})
LONG_SCRIPTS = [line for line in SHOWN if line.startswith("python ") and any(part in line for part in PARSED)]
DEMO = [line for line in SHOWN if line.startswith("python demo/")]
MAKE = [line for line in SHOWN if line.startswith("make ")]
READER = "python docs/read_cache.py CACHE"
TAB = 'eval "$(register-python-argcomplete frs-cache)"'


@pytest.fixture(scope="module")
def files(made: dict[str, Path], data: Path, teacher: dict[str, str], tmp_path_factory: pytest.TempPathFactory):
    """What the {names} stand for. One shard is missing, for stage 1 or repair to make; then come the others."""
    work = tmp_path_factory.mktemp("commands")
    gloo = {"env_cfg": {"dist_cfg": {"backend": "gloo"}}, "auto_scale_lr": {"base_batch_size": 4}}
    config = make_config(data, teacher, detector("retinanet"), work, **gloo)
    shutil.copytree(made["frs"].parent / "cache", work / "cache")
    return {"config": config, "cache": work / "cache", "lossless": made["lossless"].parent / "cache", "work": work}


def filled(line: str, files: dict[str, Path], folder: Path) -> list[str]:
    return [word.format(**files, new=folder / "new", student=files["work"] / "student") for word in line.split()]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb as it is typed; an error would leave with its code."""
    monkeypatch.setattr(sys, "argv", ["frs-cache", *words, *([] if words[1:] else ["--help"])])
    try:
        main()
    except SystemExit as left:
        assert not words[1:] and not left.code


def test_every_command_is_known() -> None:
    """So that a new one is not left out."""
    assert set(QUICK) <= set(OURS) and set(ELSEWHERE) | {READER, TAB} <= set(SHOWN)
    known = {READER, TAB, *ELSEWHERE, *LONG_SCRIPTS, *DEMO, *MAKE}
    for line, place in SHOWN.items():
        words = split(line)
        assert line in known or ours(words) is not None or words[0] == "torchrun" or words[:2] == split(READER)[:2], (
            place
        )
        config = words[words.index("--config") + 1] if "--config" in words else "C"
        assert config in ("C", "...", "my/distill.py", "STUDENT_CONFIG") or (ROOT / config).is_file(), (
            f"{place}: {line}"
        )


def test_flags_in_sentences_exist() -> None:
    whole = parser("frs-cache")
    (verbs,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    flags = {flag for verb in verbs.choices.values() for action in verb._actions for flag in action.option_strings}
    for page in (page for page in PAGES if page.parent in (ROOT, ROOT / "docs")):
        for code in re.findall(r"`(--[^`\n]+)`", page.read_text()):
            assert {word for word in code.split() if word.startswith("--")} <= flags, f"{page.name}: {code}"


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=[] if line in QUICK else [pytest.mark.slow], id=line) for line in OURS if line not in S3],
)
def test_a_verb(line: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if line.startswith(("stage1", "repair")):
        (files["cache"] / "pass-1" / "shard-00001.tar").unlink()
    if "{student}" in line and not (files["work"] / "student").exists():
        run([*filled("stage2 --config {config} --work-dir {student}", files, tmp_path)], monkeypatch)
    run(filled(line, files, tmp_path), monkeypatch)
    assert "{new}" not in line or (tmp_path / "new").exists()
    assert (files["cache"] / "pass-1" / "shard-00001.tar").exists()


@pytest.mark.slow
def test_s3(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loopback server, on which stage 1 makes what stage 2 then reads."""
    monkeypatch.chdir(tmp_path)
    with s3_server():
        for line in S3:
            run(filled(line, files, tmp_path), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("line", TORCHRUN, ids=str)
def test_torchrun(line: str, files: dict[str, Path], tmp_path: Path) -> None:
    """Two ranks by gloo; where the document has two machines, two launchers of one rank each."""
    shutil.copytree(files["cache"], tmp_path / "cache")
    if "stage1" in line:
        (tmp_path / "cache" / "pass-1" / "shard-00001.tar").unlink()
    nodes = 2 if "--nnodes 2" in line else 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = line.replace("--nproc-per-node 8", f"--nproc-per-node {2 // nodes}").replace(
        "node0:29500", f"127.0.0.1:{port}"
    )
    options = "" if "--cfg-options" in line else f" --cfg-options cache.dir={tmp_path / 'cache'}"
    words = filled(line.replace("torchrun", "-m torch.distributed.run") + options, files, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, **pipes) for _ in range(nodes)]
    out = "".join(finished(process) for process in started)
    assert out.count("took  ") == 1
    assert "stage1" not in line or "on 2 ranks" in out


def test_the_reader(files: dict[str, Path]) -> None:
    command = [sys.executable, ROOT / "docs" / "read_cache.py", files["cache"]]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert len(out.splitlines()) == 24


def test_tab_completion_is_registered() -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", f"{TAB}; complete -p frs-cache"], check=True, env={**os.environ, "PATH": path})


@pytest.mark.parametrize("line", MAKE)
def test_make(line: str) -> None:
    """Set-up fetches 2 GB: what would be run is asked for; -B: also where it has been run before."""
    done = subprocess.run([*line.split(), "-nB"], cwd=ROOT, check=True, capture_output=True, text=True)
    lines = [found.replace(".venv/bin/", "") for found in done.stdout.splitlines()]
    steps = [found for found in lines if found.startswith(("python ", "python3 "))]
    assert steps and (line != "make demo" or set(steps[-3:]) <= set(SHOWN))


class Parsed(Exception):
    """Raised where a script has parsed its flags."""


@pytest.mark.parametrize("line", LONG_SCRIPTS)
def test_flags_of_a_long_script(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts, and takes these flags."""
    _, *module, script = split(line)[: 3 if " -m " in line else 2]
    monkeypatch.setattr(sys, "argv", split(line)[1 + len(module) :])
    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, *arguments: list[str]) -> None:
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.chdir(ROOT)
    with pytest.raises(Parsed):
        runpy.run_module(script, run_name="__main__") if module else runpy.run_path(script, run_name="__main__")


@pytest.mark.slow
def test_the_demos_scripts(tmp_path: Path) -> None:
    """All of them as they stand, with fewer images and steps, in a copy: they write beside themselves."""
    for name in ("demo", "configs", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for line in sorted(DEMO, key=lambda line: line.split()[1]):
        _, script, *arguments = split(line)
        command = [sys.executable, script, *arguments, *SMALL[script]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)  # noqa: PLW1510
        assert done.returncode == 0, line + done.stdout[-2000:] + done.stderr[-2000:]
