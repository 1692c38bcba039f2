"""Configs are written whatever another process has left in the cache folder of yapf."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TEXT = "from pipeline.mm import Config; print(Config({'a': {'b': 1}}).pretty_text)"
NAMES = (
    "import yapf; from yapf_third_party._ylib2to3 import pygram; from yapf_third_party._ylib2to3.pgen2 import driver; "
)
NAMES += "[print(driver._generate_pickle_name(f)) for f in (pygram._GRAMMAR_FILE, pygram._PATTERN_GRAMMAR_FILE)]"


def run(code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", code], check=False, env=variables, capture_output=True, text=True)


def test_an_empty_file_of_grammar_is_not_read(tmp_path: Path) -> None:
    files = [Path(name) for name in run(NAMES, tmp_path).stdout.split()]  # yapf alone writes them
    assert len(files) == 2
    for file in files:
        assert file.is_relative_to(tmp_path)
        file.write_bytes(b"")  # what a process sees while another one writes
    assert "EOFError" in run(NAMES, tmp_path).stderr
    found = run(TEXT, tmp_path)
    assert found.stdout == "a = dict(b=1)\n\n", found.stderr
    assert [file.read_bytes() for file in files] == [b"", b""]
