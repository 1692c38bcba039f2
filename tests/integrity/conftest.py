"""Fixtures of the tests of verify and repair."""

from __future__ import annotations

import pytest

from tests.helpers.verbs import Run, verb_runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    return verb_runner(monkeypatch, capsys)
