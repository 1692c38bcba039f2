"""The lock of a cache folder."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.errors import CacheError
from pipeline.stage1.ranks import Ranks
from pipeline.storage.lock import locked


def test_the_lock_is_held_until_the_last_rank_has_ended(tmp_path: Path) -> None:
    """As one may go on with its shard for seconds when the leader is killed."""
    with locked(tmp_path) as lock:
        shared = lock.share()
        rank = SimpleNamespace(world=2, broadcast=lambda _: shared, _joined=ExitStack())
        Ranks.share_lock(cast(Any, rank), tmp_path, None)
        with pytest.raises(CacheError, match="another process is writing"), locked(tmp_path):
            pass
    with pytest.raises(CacheError, match="another process is writing"), locked(tmp_path):
        pass
    rank._joined.close()
    with locked(tmp_path):
        pass


def test_a_forked_worker_does_not_hold_the_lock(tmp_path: Path) -> None:
    """Loaders' workers outlive a killed run for seconds; the next one must not be refused because of them."""
    with locked(tmp_path):
        fork = multiprocessing.get_context("fork")
        runs = fork.Event()
        worker = fork.Process(target=lambda: (runs.set(), time.sleep(60)))
        worker.start()
        runs.wait()
    try:
        with locked(tmp_path):
            pass
    finally:
        worker.kill()
        worker.join()


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CacheError, match="another process"), locked(tmp_path):
        pass
