"""Processes that share one `cache.local`, some of them killed: every byte is right, and the limit holds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.cache import Cache
from tests.helpers.servers import web_server
from tests.helpers.shared_disk import LIMIT, digests, read_all, used

ROUNDS = 30


def read_often(url: str, disk: str, wanted: list[str], rounds: int = ROUNDS) -> None:
    """Read a cache through a disk cache again and again."""
    for _ in range(rounds):
        read_all(url, disk, wanted)


@pytest.mark.slow
def test_processes_share_a_disk_cache_and_some_are_killed(made: dict[str, Path], tmp_path: Path) -> None:
    wanted, disk = digests(Cache(made["frs"].parent / "cache")), tmp_path / "disk"
    spawn = multiprocessing.get_context("spawn")
    with web_server(made["frs"].parent) as web:
        given: tuple[Any, ...] = (f"{web.address}/cache", str(disk), wanted)
        stays, *others = [spawn.Process(target=read_often, args=given) for _ in range(3)]
        for process in (stays, *others):
            process.start()
        for number, other in enumerate(others, start=1):
            while len(list(disk.glob("*"))) < 2 + number and other.exitcode is None:
                time.sleep(0.001)
            time.sleep(0.05 * number)
            assert other.pid is not None
            os.kill(other.pid, signal.SIGKILL)
            other.join()
            assert other.exitcode == -signal.SIGKILL
        stays.join(120)
        assert stays.exitcode == 0
        last = spawn.Process(target=read_often, args=(*given, 1))
        last.start()
        last.join(120)
        assert last.exitcode == 0
    assert 0 < used(disk) <= LIMIT * 1e9 + 4096
