"""A few kills of each command; tests/torture/kill.py has many."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.helpers.forks import exit_code, in_child
from tests.helpers.killed_jobs import JOBS, SOURCE
from tests.helpers.kills import kill


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_killed_command_ends_as_an_undisturbed_one(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "frs").mkdir()
    os.symlink(made["frs"].parent / "cache", tmp_path / "frs/cache")
    config = tmp_path / SOURCE[name] / "config.py"
    config.parent.mkdir(exist_ok=True)
    if not (config.parent / "cache").exists():
        os.symlink(made["lossless"].parent / "cache", config.parent / "cache")
    config.write_bytes(made[SOURCE[name]].read_bytes())
    rng, whole, job = random.Random(5), JOBS[name](config, tmp_path / "whole"), JOBS[name](config, tmp_path / "killed")
    begun = time.perf_counter()
    assert exit_code(in_child(whole.run)) == 0
    lasts, wanted, kills = time.perf_counter() - begun, whole.result(), 0
    for tries in range(1, 9):  # a run may end before its kill; then the next one starts again, and is killed earlier
        if kill(in_child(job.run), job.root, rng.uniform(0.1, 0.8) * lasts / tries, tries % 2 == 0):
            kills += 1
            assert not job.lost(wanted)
        elif kills < 2:
            job = JOBS[name](config, tmp_path / "killed")
        if kills == 3:
            break
    assert exit_code(in_child(job.run)) == 0
    assert kills > 1 and job.result() == wanted != {}
