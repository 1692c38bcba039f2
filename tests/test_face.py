"""The command line: help, quick starts, progress, log file, tab completion, the view that is exported."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipeline.cache.cache import Cache
from pipeline.cli import terminal
from pipeline.cli.main import COMMANDS, parser
from pipeline.cli.tables import compare_with_fp16
from pipeline.errors import CacheError
from pipeline.tools.export import decode_view, export_view, find_view

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "zarr", "cv2", "mmdet", "mmcv", "mmengine", "webdataset", "matplotlib")


def helps() -> dict[str, str]:
    whole = parser("frs-cache")
    (verbs,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    return {"": whole.format_help()} | {name: verb.format_help() for name, verb in verbs.choices.items()}


@pytest.mark.parametrize("argv", [
    "report C -o P --samples 0", "plan --config C --samples -1", "verify C --views 0", "reencode A B --jobs -1",
])  # fmt: skip
def test_counts_are_positive(argv: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser("frs-cache").parse_args(argv.split())
    assert "expected a whole number from 1 on" in capsys.readouterr().err


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
    """Top-level packages that a verb has imported when it is done."""
    code = (
        f"import sys; sys.argv = ['frs-cache', *{list(arguments)!r}]\n"
        "from pipeline.cli.main import main\nmain()\n"
        "print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_looking_at_a_cache_starts_at_once(made: dict[str, Path], tmp_path: Path) -> None:
    root = str(made["frs"].parent / "cache")
    for verb in ("info", "verify"):
        assert not started(verb, root) & set(HEAVY), verb
    exported = started("export", root, "--image-id", "100", "-o", str(tmp_path))
    assert "torch" in exported and not exported & {"cv2", "mmdet", "mmcv", "mmengine", "webdataset", "matplotlib"}


def test_tab_completion(tmp_path: Path) -> None:
    def completed(line: str) -> list[str]:
        told = tmp_path / "told"
        environment = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)),
                       "_ARGCOMPLETE_STDOUT_FILENAME": str(told), "_ARGCOMPLETE_IFS": "\n"}  # fmt: skip
        command = [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'frs-cache'; from pipeline.cli.main import main; main()",
        ]
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        return [word.strip() for word in told.read_text().split("\n")]

    assert completed("frs-cache inf") == ["info"]
    assert "--image-id" in completed("frs-cache export --im")


def drawn(on_terminal: bool) -> str:
    bar, screen = terminal.Bar(), io.StringIO()
    bar._console = Console(file=screen, force_terminal=on_terminal)
    bar.start("pass 1", 8)
    for _ in range(2):
        bar.advance(4, 500_000)
    bar.stop()
    return screen.getvalue()


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """On a terminal a bar, in colour unless NO_COLOR is set; elsewhere one plain line."""
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert colour.search(drawn(on_terminal=True)) and capsys.readouterr().out == ""
    monkeypatch.setenv("NO_COLOR", "1")
    plain = drawn(on_terminal=True)
    assert not colour.search(plain) and all(word in plain for word in ("8/8", "views/s", "1.0 MB", "0:00:00"))
    assert drawn(on_terminal=False) == ""
    assert re.fullmatch(r"pass 1   8 of 8 views, [\d.]+ views/s, 1\.0 MB, 0 s\n", capsys.readouterr().out)


def test_a_run_of_unknown_length_tells_its_phases(capsys: pytest.CaptureFixture) -> None:
    """Without a terminal a line when one begins; on it a bar of that title, and the next phase ends the one before."""
    bar, screen = terminal.Bar(), io.StringIO()
    bar.start("learning from 5 views", None)
    assert capsys.readouterr().out == "learning from 5 views\n"
    bar.stop()
    assert capsys.readouterr().out == ""
    bar._console = Console(file=screen, force_terminal=True, width=100)
    for title in ("learning from 5 views", "choosing steps on 3 views"):
        bar.start(title, None)
        bar.advance(1, 0)
    bar.stop()
    last = screen.getvalue().splitlines()
    assert any("learning" in line for line in last) and any("choosing" in line for line in last)


def test_one_line_a_shard_in_the_log_file(made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cache = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    for number in (0, 1):
        (cache / f"pass-1/shard-0000{number}.tar").unlink()
    arguments = ["stage1", "--config", str(made["frs"]), "--cfg-options", f"cache.dir={cache}"]
    args = parser("frs-cache").parse_args(arguments)
    args.run(args)
    told, kept = capsys.readouterr().out, (tmp_path / "cache.log").read_text().splitlines()
    shards = [line for line in kept if ".tar" in line]
    assert len(shards) == 2 and ".tar" not in told
    for number, line in enumerate(shards):
        assert re.fullmatch(
            rf"[-\d]+ [:\d]+ pass-1/shard-0000{number}\.tar: \d views, [\d.]+ MB, [\d.]+ s, [\d.]+ views/s", line
        )
    words = [line[20:] for line in kept if ".tar" not in line]
    assert words == told.splitlines()  # the rest of the log is what the terminal showed
    assert terminal.log_file("s3://bucket/caches/coco/") == Path("work_dirs/coco.log")


def test_a_lossless_cache_is_not_small() -> None:
    assert compare_with_fp16(31.14) == "31.1 times smaller than fp16"
    assert compare_with_fp16(0.62) == "1.6 times as large as fp16"


@pytest.mark.parametrize("codec", ["frs", "lossless"])
def test_export(made: dict[str, Path], tmp_path: Path, codec: str) -> None:
    cache = Cache(made[codec].parent / "cache")
    for view in (0, 1):
        written = export_view(str(cache.root), 104, view, tmp_path / str(view))
        record, output = decode_view(cache, find_view(cache, 104, view))
        assert (record.image_id, record.view, len(written)) == (104, view, 31)
        for n in range(5):
            for what, levels in (("features", output.features), ("scores", output.scores), ("frs", output.frs)):
                stored = np.load(tmp_path / str(view) / f"{what}_{n}.npy")
                np.testing.assert_array_equal(stored, levels[n][0].numpy())
                with Image.open(tmp_path / str(view) / f"{what}_{n}.png") as picture:
                    assert picture.size == record.shape[::-1]
        assert json.loads((tmp_path / str(view) / "view.json").read_text())["view"] == view
    frs = np.load(tmp_path / "0/frs_0.npy")
    scores = np.load(tmp_path / "0/scores_0.npy")
    np.testing.assert_allclose(frs, scores.max(axis=0), atol=0 if codec == "lossless" else 0.1)
    with Image.open(tmp_path / "0/frs_0.png") as picture:
        brightest = np.asarray(picture).sum(axis=2)
    y, x = np.unravel_index(brightest.argmax(), brightest.shape)
    assert frs[y // 8, x // 8] == frs.max()
    with pytest.raises(CacheError, match="104 is held in views \\[0, 1\\], not 2"):
        export_view(str(cache.root), 104, 2, tmp_path)
    with pytest.raises(CacheError, match="no complete pass holds image 7; it holds 100, 101"):
        export_view(str(cache.root), 7, 0, tmp_path)


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    """`pip install .` brings the command and everything that the package needs beside its code."""
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".git", "work_dirs", ".venv"))
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
    done = subprocess.run([sys.executable, "-m", "pipeline", "--help"], cwd=tmp_path / "installed", text=True,
                          env={**os.environ, "PYTHONPATH": "."}, capture_output=True, check=True)  # fmt: skip
    assert "frs-cache" in done.stdout
