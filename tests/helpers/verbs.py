"""A verb of the command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]


def verb_runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """Return a function that runs a verb and returns (exit code, standard output, standard error)."""
    from pipeline.cli.command import guarded
    from pipeline.cli.main import main

    def run(*argv: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, argv)])
        capsys.readouterr()
        try:
            guarded(main)
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run
