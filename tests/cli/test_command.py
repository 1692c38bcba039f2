"""Verbs, their help and their imports, tab completion, and one-line errors."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.command import message_of, parse_options
from pipeline.cli.main import COMMANDS, parser
from tests.helpers.paths import ROOT


def test_info(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from pipeline.cli.main import main

    root = str(made["frs"].parent / "cache")
    monkeypatch.setattr(sys, "argv", ["pipeline", "info", root, "--json"])
    main()
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["views"]) == (12, 24)
    on_disk = sum(p.stat().st_size for p in Path(root).glob("pass-*/*.tar"))
    assert found["bytes"] == on_disk == sum(found["bytes_by_tensor"].values())
    assert {"features", "scores", "frs", "record", "thumbnail", "overhead"} == found["bytes_by_tensor"].keys()
    assert found["codec"]["type"] == "frs" and len(found["content"]) == len(found["recipe"]) == 64
    for verb in ("info", "verify"):
        monkeypatch.setattr(sys, "argv", ["pipeline", verb, root])
        main()
        assert "MB" in capsys.readouterr().out


def test_one_line_of_a_workers_error() -> None:
    from pipeline.errors import CorruptCache

    text = "Caught CorruptCache in worker\nTraceback\n  x\npipeline.errors.CorruptCache: shard 3 is broken"
    wrapped = CorruptCache(text)
    assert message_of(wrapped) == "shard 3 is broken"


def test_options_keep_spaces_inside_values() -> None:
    """mmengine would make the cache in another folder, without a word."""
    pairs = ["cache.dir=/tmp/my  caches/a b", "x=(1333, 800)", "y=[a b , c,(d e, 2)]", "z='q r'", "n=1 2", "i= 3 "]
    assert parse_options(pairs) == {
        "cache.dir": "/tmp/my  caches/a b",
        "x": (1333, 800),
        "y": ["a b", "c", ("d e", 2)],
        "z": "q r",
        "n": "1 2",
        "i": 3,
    }


HEAVY = ("torch", "zarr", "cv2", "mmdet", "mmcv", "mmengine", "webdataset", "matplotlib")


def helps() -> dict[str, str]:
    root = parser("frs-cache")
    (verbs,) = (a for a in root._actions if isinstance(a, argparse._SubParsersAction))
    return {"": root.format_help()} | {name: verb.format_help() for name, verb in verbs.choices.items()}


@pytest.mark.parametrize(
    "argv",
    [
        "report C -o P --samples 0",
        "plan --config C --samples -1",
        "verify C --views 0",
        "reencode A B --jobs -1",
    ],
)
def test_counts_are_positive(argv: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser("frs-cache").parse_args(argv.split())
    assert "expected an integer of at least 1" in capsys.readouterr().err


def test_every_help_has_an_example_and_fits_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    found = helps()
    assert found.keys() == {"", *COMMANDS}
    for name, text in found.items():
        assert re.search(rf"examples?:\n  frs-cache {name}", text), name
        assert len(text.splitlines()) <= 36 and max(map(len, text.splitlines())) <= 120, name
    for script in ("stage1_cache_teacher.py", "stage2_distill.py"):
        done = subprocess.run(
            [sys.executable, ROOT / script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert f"python {script} --config" in done.stdout and len(done.stdout.splitlines()) <= 36


def started(*arguments: str) -> set[str]:
    """Return the top-level packages that a verb has imported when it ends."""
    code = (
        f"import sys; sys.argv = ['frs-cache', *{list(arguments)!r}]\n"
        "from pipeline.cli.main import main\nmain()\n"
        "print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_info_verify_and_export_import_no_heavy_packages(made: dict[str, Path], tmp_path: Path) -> None:
    root = str(made["frs"].parent / "cache")
    for verb in ("info", "verify"):
        assert not started(verb, root) & set(HEAVY), verb
    exported = started("export", root, "--image-id", "100", "-o", str(tmp_path))
    assert "torch" in exported and not exported & {"cv2", "mmdet", "mmcv", "mmengine", "webdataset", "matplotlib"}


def test_tab_completion(tmp_path: Path) -> None:
    def completed(line: str) -> list[str]:
        output = tmp_path / "completions"
        environment = {
            **os.environ,
            "_ARGCOMPLETE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "_ARGCOMPLETE_STDOUT_FILENAME": str(output),
            "_ARGCOMPLETE_IFS": "\n",
        }
        command = [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'frs-cache'; from pipeline.cli.main import main; main()",
        ]
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        return [word.strip() for word in output.read_text().split("\n")]

    assert completed("frs-cache inf") == ["info"]
    assert "--image-id" in completed("frs-cache export --im")


@pytest.mark.parametrize(("own", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_unless_the_user_decides(own: str | None, expected: str) -> None:
    """Set before torch is imported, which reads it then."""
    code = (
        "import argparse, os, sys\nfrom pipeline.cli.command import run_verb\n"
        "def run(_):\n    print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
        "run_verb(argparse.Namespace(run=run, exit_message=''))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {} if own is None else {"OMP_WAIT_POLICY": own}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{expected} False\n"
