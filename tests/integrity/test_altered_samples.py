"""Altered samples under right checksums are refused in one line, or decode; tests/torture/fuzz_decode.py has many."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.command import message_of
from pipeline.errors import PipelineError
from pipeline.text import one_line
from tests.helpers.decode_target import Target


@pytest.mark.parametrize("codec", ["frs", "lossless"])
def test_altered_samples(of_version: dict[str, Path], codec: str) -> None:
    target, taken = Target(of_version[codec].parent / "cache"), Counter[str]()
    for n in range(60):
        try:
            target(np.random.default_rng(n), taken)
        except PipelineError as error:
            assert one_line(message_of(error)) == message_of(error)
            taken["refused"] += 1
    decoded = sum(count for name, count in taken.items() if name.startswith("decoded"))
    assert decoded > 5 and taken["refused"] > 5
