"""The output of a run: the bar, plain lines, the log file."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli import terminal
from pipeline.cli.main import parser
from pipeline.cli.tables import compare_with_fp16


def drawn(on_terminal: bool) -> str:
    bar, screen = terminal.Bar(), io.StringIO()
    bar._console = Console(file=screen, force_terminal=on_terminal)
    bar.start("pass 1", 8)
    for _ in range(2):
        bar.advance(4, 500_000)
    bar.stop()
    return screen.getvalue()


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """On a terminal, a bar, in colour unless NO_COLOR is set. Elsewhere, one plain line."""
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert colour.search(drawn(on_terminal=True)) and capsys.readouterr().out == ""
    monkeypatch.setenv("NO_COLOR", "1")
    plain = drawn(on_terminal=True)
    assert not colour.search(plain) and all(word in plain for word in ("8/8", "views/s", "1.0 MB", "0:00:00"))
    assert drawn(on_terminal=False) == ""
    assert re.fullmatch(r"pass 1   8 of 8 views, [\d.]+ views/s, 1\.0 MB, 0 s\n", capsys.readouterr().out)


def test_a_run_of_unknown_length_prints_its_phases(capsys: pytest.CaptureFixture) -> None:
    """Without a terminal, one line at the start of a phase. On a terminal, a bar, which the next phase replaces."""
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
    printed, logged = capsys.readouterr().out, (tmp_path / "cache.log").read_text().splitlines()
    shards = [line for line in logged if ".tar" in line]
    assert len(shards) == 2 and ".tar" not in printed
    for number, line in enumerate(shards):
        assert re.fullmatch(
            rf"[-\d]+ [:\d]+ pass-1/shard-0000{number}\.tar: \d views, [\d.]+ MB, [\d.]+ s, [\d.]+ views/s", line
        )
    words = [line[20:] for line in logged if ".tar" not in line]
    assert words == printed.splitlines()  # all other lines of the log are those of the terminal
    assert terminal.log_file("s3://bucket/caches/coco/") == Path("work_dirs/coco.log")


def test_a_lossless_cache_is_not_small() -> None:
    assert compare_with_fp16(31.14) == "31.1 times smaller than fp16"
    assert compare_with_fp16(0.62) == "1.6 times as large as fp16"
