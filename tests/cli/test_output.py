"""What is printed and logged: any name on any terminal, and no control characters of foreign names."""

from __future__ import annotations

import io
import json
import locale
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.canonical import read_json, write_json
from pipeline.cli.command import run_script
from pipeline.cli.main import main
from pipeline.cli.output import SafeRecord, prepare_output, show, show_json
from pipeline.cli.stage2 import STAGE2
from pipeline.cli.tables import info_table, stage1_table, stage2_table
from pipeline.errors import ConfigError
from pipeline.stage2.settings import apply_flags
from pipeline.text import UNSAFE, one_line, one_line_each, printable
from tests.helpers.verbs import Run, verb_runner

HOSTILE = "a\x1b[31mb\x9b2J\x7f\u202eevil\u2066\ud800\rintact\nintact   9 files"


@pytest.fixture(autouse=True)
def factory() -> Iterator[None]:
    """Restore the class of log records."""
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    return verb_runner(monkeypatch, capsys)


def printed(monkeypatch: pytest.MonkeyPatch, *argv: Any) -> bytes:
    """Run a verb on a terminal that shows ASCII only, and raises for everything else. Return what is printed."""
    streams = [io.BytesIO(), io.BytesIO()]
    for name, stream in zip(("stdout", "stderr"), streams):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding="ascii", errors="strict"))
    monkeypatch.setattr(sys, "argv", ["frs-cache", *map(str, argv)])
    try:
        main()
    except SystemExit as stopped:
        assert stopped.code in (0, 2)
    sys.stdout.flush()
    sys.stderr.flush()
    return b"".join(stream.getvalue() for stream in streams)


VERBS = {
    "info": ["C"],
    "verify": ["C"],
    "export": ["C", "--image-id", "100", "-o", "D/out"],
    "report": ["C", "-o", "D/page.html"],
    "stage1": ["--config", "CONFIG", "--log-file", "D/x.log", "--cfg-options", "cache.dir=C"],
    "repair": ["--config", "CONFIG", "--cfg-options", "cache.dir=C"],
    "reencode": ["C", "D/neu", "--like", "D/nicht da"],
    "plan": ["--config", "D/nicht da.py"],
    "stage2": ["--help"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_an_ascii_terminal(monkeypatch: pytest.MonkeyPatch, made: dict[str, Path], tmp_path: Path, verb: str) -> None:
    folder = tmp_path / "données 日本"
    cache = shutil.copytree(made["frs"].parent / "cache", folder / "cache")
    given = {"C": str(cache), "CONFIG": str(made["frs"])}
    words = [given.get(word, word.replace("D/", f"{folder}/").replace("=C", f"={cache}")) for word in VERBS[verb]]
    text = printed(monkeypatch, verb, *words).decode("ascii")
    assert text and (r"donn\xe9es \u65e5\u672c" in text or verb in ("verify", "repair", "stage2"))


def test_the_help_of_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    with pytest.raises(SystemExit):
        run_script(STAGE2, "énorme.py")
    sys.stdout.flush()
    assert rb"\xe9norme.py" in raw.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_log_files_of_other_loggers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str) -> None:
    """mmengine opens its log file in the locale's encoding. logging would print a traceback for each line."""
    monkeypatch.setattr(locale, "getpreferredencoding", lambda *_: encoding)
    prepare_output()
    logger, path = logging.Logger("foreign"), tmp_path / "x.log"
    handler = logging.FileHandler(path, encoding=encoding)
    logger.addHandler(handler)
    monkeypatch.setattr(logging.Handler, "handleError", lambda *_: pytest.fail("a line cannot be logged"))
    logger.warning("%s é 日本", HOSTILE)
    handler.close()
    text = path.read_text(encoding)
    assert not UNSAFE.search(text) and (r"\xe9 \u65e5\u672c" if encoding == "ascii" else "é 日本") in text
    assert logging.getLogRecordFactory() is SafeRecord


def test_what_is_unsafe() -> None:
    """C0 but tab and newline, DEL, C1, overrides of the direction, surrogates; no letter, emoji or space."""
    controls = [*range(0x20), *range(0x7F, 0xA0)]
    others = [0x202A, 0x202E, 0x2066, 0x2069, 0x200F, 0x2028, 0xD800, 0xDFFF]
    for code in {*controls, *others} - {0x09, 0x0A}:
        assert printable(chr(code)).isascii() and printable(chr(code)).isprintable(), hex(code)
    kept = "ab\tc\nd é 日本\u3000語 \U0001f469\u200d\U0001f680 \u00a0 ~"
    assert printable(kept) == kept
    assert one_line("a\r\n\tb\x1b") == r"a b\x1b" and one_line_each({"a\n": ["\n", 1, None]}) == {"a ": [" ", 1, None]}


def test_tables_have_their_own_lines_only() -> None:
    """A name cannot add a line such as 'intact   9 files'."""
    summary = {
        **dict.fromkeys(("images", "views", "passes", "bytes", "bytes_per_view", "ratio_to_fp16", "seconds"), 1),
        **dict.fromkeys(("views_computed", "quarantined", "mAP", "AP50", "epochs", "images_per_second"), 1),
        **dict.fromkeys(("content", "work_dir"), HOSTILE),
    }
    for text in (stage1_table(HOSTILE, summary), stage2_table(summary)):
        assert not UNSAFE.search(text) and not any(line.startswith("intact") for line in text.splitlines())


def test_names_of_a_cache(run: Run, made: dict[str, Path], tmp_path: Path) -> None:
    """The teacher's name in plan.json, and the name of the folder."""
    folder = tmp_path / HOSTILE.replace("\ud800", "\udcff")
    cache = shutil.copytree(made["frs"].parent / "cache", folder)
    plan = read_json(cache / "plan.json")
    plan["recipe"]["teacher"]["name"] = HOSTILE.replace("\ud800", "")
    write_json(cache / "plan.json", plan)
    shutil.rmtree(cache / "pass-0")
    shutil.rmtree(cache / "pass-1")
    for argv, wanted in (
        (["info", cache], 0),
        (["verify", cache], 2),
        (["export", cache, "--image-id", 1, "-o", tmp_path / "o"], 2),
        (["report", cache, "-o", tmp_path / "p.html"], 2),
        (["plan", "--config", cache], 2),
        (["info", cache, "--no\x1b[2Jsuch"], 2),
    ):
        code, out, err = run(*argv)
        assert code == wanted and not UNSAFE.search(out + err), argv
        assert not any(line.startswith("intact") for line in (out + err).splitlines()), argv
    code, out, _ = run("info", cache, "--json")
    assert code == 0 and not UNSAFE.search(out)
    assert json.loads(out)["teacher"]["name"] == plan["recipe"]["teacher"]["name"]
    assert "a\\x1b[31mb" in info_table(json.loads(out))


def test_log_lines_of_stage_1(run: Run, made: dict[str, Path], tmp_path: Path) -> None:
    cache = shutil.copytree(made["frs"].parent / "cache", tmp_path / "a\x1b[31m\u202eb")
    (cache / "pass-1/manifest.json").unlink()
    code, out, err = run("stage1", "--config", made["frs"], "--cfg-options", f"cache.dir={cache}")
    logged = Path(f"{cache}.log").read_text("utf-8")
    assert code == 0 and r"a\x1b[31m\u202eb" in out and r"a\x1b[31m\u202eb" in logged, err
    assert not UNSAFE.search(out + err + logged)


def test_show(capsys: pytest.CaptureFixture) -> None:
    show(HOSTILE)
    show_json({HOSTILE: "\x7f"})
    out = capsys.readouterr().out
    assert not UNSAFE.search(out) and json.loads(out[out.index("{") :]) == {HOSTILE: "\x7f"}


def test_a_name_that_mmengine_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes the path of a checkpoint after the first epoch, in the locale's encoding."""
    from pipeline.mmdet_compat.registry import Config

    monkeypatch.setattr(locale, "getpreferredencoding", lambda *_: "ascii")
    with pytest.raises(ConfigError, match="work_dir: é cannot be written in the locale's encoding ascii"):
        apply_flags(Config({"train_dataloader": {}}), "c.py", "é", None, False, False, "none")
