"""How a remote cache is read: few requests, processes of any kind, and a disk that never serves a wrong byte."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.cache import Cache
from pipeline.cache.prefetch import read_batches
from pipeline.errors import CorruptCache
from pipeline.storage.disk_cache import FULL, DiskCache
from pipeline.storage.extents import Sha256Extent
from pipeline.storage.ranges import group_neighbours
from pipeline.storage.urls import place
from tests.helpers.paths import ROOT
from tests.helpers.servers import web_server


@pytest.fixture
def web(made: dict[str, Path]) -> Iterator[Any]:
    with web_server(made["frs"].parent) as handler:
        yield handler


def read_all(cache: Cache) -> list[dict[str, np.ndarray]]:
    """Every sample of the first pass, three a batch."""
    refs = [ref for shard in cache.references(0) for ref in shard]
    order = np.random.default_rng(0).permutation(len(refs))
    batches = [[refs[n] for n in order[i : i + 3]] for i in range(0, len(refs), 3)]
    return [sample for batch in read_batches(cache, batches) for _, sample, _ in batch]


def same(found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> bool:
    return len(found) == len(expected) > 0 and all(
        np.array_equal(a[name], b[name]) for a, b in zip(found, expected) for name in b
    )


def of_shards(asked: list[tuple[str, str, str | None]]) -> list[str]:
    return [path for _, path, _ in asked if "shard-" in path]


def test_a_plan_that_names_more_than_a_shard_holds(web: Any, made: dict[str, Path]) -> None:
    for root in (f"{web.address}/cache", made["frs"].parent / "cache"):
        cache = Cache(root)
        beyond = replace(cache.references(0)[0][0], index=99)
        found = r"shard-00000\.tar: sample 99 is in the shard plan, but the shard has \d"
        with pytest.raises(CorruptCache, match=found):
            list(read_batches(cache, [[beyond]]))


FORKS = """
import multiprocessing, sys
from pipeline.cache.cache import Cache

def read(cache):
    try:
        print(type(cache).__name__, len(cache.shard(0, 0).read(0)), flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)

def run(kind, what):
    process = multiprocessing.get_context(kind).Process(target=what[0], args=what[1:])
    process.start()
    process.join(30)
    print(kind, process.exitcode, flush=True)
    process.kill()

def opened(url):
    read(Cache(url))

if __name__ == "__main__":
    import pipeline.cache.inspect
    assert "obstore" not in sys.modules  # imported for URLs alone
    run("fork", (opened, sys.argv[1]))  # nothing was read before: the child may
    cache = Cache(sys.argv[1])
    run("spawn", (read, cache))
    run("fork", (read, cache))
    read(cache)
"""


def test_workers_have_clients_of_their_own(web: Any, tmp_path: Path) -> None:
    """Spawned or forked early, they read. Forked late, obstore would wait for ever: that is one line instead."""
    (tmp_path / "forks.py").write_text(FORKS)
    done = subprocess.run(
        [sys.executable, tmp_path / "forks.py", f"{web.address}/cache"],
        check=True,
        text=True,
        capture_output=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = done.stdout.splitlines()
    assert lines[:4] == ["Cache 5", "fork 0", "Cache 5", "spawn 0"], done
    assert lines[4].startswith("StoreError") and "'forkserver'" in lines[4]
    assert lines[5:] == ["fork 0", "Cache 5"]


@given(st.lists(st.tuples(st.integers(1, 300), st.booleans())), st.integers(0, 400), st.integers(1, 900))
def test_runs_hold_every_extent_once(rows: list[tuple[int, bool]], gap: int, largest: int) -> None:
    tiles, at = [], 0
    for size, wanted in rows:
        tiles.append((Sha256Extent(at, size, "0" * 64), wanted))
        at += size
    extents = [extent for extent, wanted in tiles if wanted]
    runs = group_neighbours(extents, gap, largest)
    assert [extent for run in runs for extent in run] == extents
    for run in runs:
        assert len(run) == 1 or run[-1].offset + run[-1].size - run[0].offset <= largest
        assert all(b.offset - a.offset - a.size < gap for a, b in pairwise(run))


def test_neighbours_share_a_request(web: Any, made: dict[str, Path]) -> None:
    url, expected = f"{web.address}/cache", read_all(Cache(made["frs"].parent / "cache"))
    assert same(read_all(Cache(url)), expected)
    shards = len(Cache(url).references(0))
    sidecars_heads_samples = 3 * shards  # all twelve samples are in the first eight batches: one range a shard
    assert len(of_shards(web.asked)) == sidecars_heads_samples < 2 * shards + len(expected)
    web.asked.clear()
    cache = Cache(url)
    for n, shard in enumerate(cache.references(0)):
        for i in range(len(shard)):
            cache.shard(0, n).read(i)
    assert len(of_shards(web.asked)) == 3 * shards  # in order: head, then one range read ahead


def test_disk_serves_the_second_epoch(web: Any, made: dict[str, Path], tmp_path: Path) -> None:
    url, expected = f"{web.address}/cache", read_all(Cache(made["frs"].parent / "cache"))

    def opened(gb: float) -> Cache:
        return Cache(place(url, local=str(tmp_path / "disk"), local_gb=gb))

    assert same(read_all(opened(1)), expected)
    web.asked.clear()
    assert same(read_all(opened(1)), expected)
    assert not of_shards(web.asked)
    for path in (tmp_path / "disk").iterdir():  # a flipped bit here, zeros there, a torn file
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw[: len(raw) * 9 // 10])
    assert same(read_all(opened(1)), expected)
    assert of_shards(web.asked)
    web.asked.clear()
    assert same(read_all(opened(1)), expected)
    assert not of_shards(web.asked)
    for path in (tmp_path / "disk").iterdir():
        path.unlink()
    assert same(read_all(opened(1e-5)), expected)  # 10 kB, room for next to nothing
    assert disk_usage(tmp_path / "disk") <= 10_000


def disk_usage(folder: Path) -> int:
    return sum(512 * path.stat().st_blocks for path in folder.iterdir() if path.name != ".used")


SIZE, LIMIT = 100_000, 2_000_000


def content(shard: str, n: int) -> bytes:
    return bytes([int(shard[0], 16), n]) * (SIZE // 2)


def hammer(folder: str, seed: int) -> None:
    disk = DiskCache(folder, LIMIT, 0.0)
    for n in np.random.default_rng(seed).integers(0, 60, 300):
        shard, offset = f"{n % 6}" * 64, SIZE * int(n // 6)
        expected = content(shard, int(n // 6))
        found = disk.read(shard, Sha256Extent.of(offset, expected))
        assert found in (None, expected)
        if found is None:
            disk.keep(shard, offset, expected)


def test_processes_share_a_bounded_disk(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=hammer, args=(str(tmp_path), seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    assert LIMIT // 2 < disk_usage(tmp_path) <= LIMIT


def test_disk_throws_out_what_this_run_has_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [f"{n}" * 64 for n in range(5)]
    (tmp_path / "notes.txt").write_text("not ours")
    before = DiskCache(str(tmp_path), LIMIT, 0.0)
    for age, shard in enumerate(shards[:3]):
        assert before.room(5 * SIZE)
        for n in range(5):
            before.keep(shard, n * SIZE, content(shard, n))
        os.utime(tmp_path / shard, (time.time() - 1000 + age,) * 2)
    now = DiskCache(str(tmp_path), LIMIT, time.time() - 10)
    now.touch(shards[0])  # the oldest, but in use again
    assert now.room(8 * SIZE)
    now.keep(shards[3], 0, bytes(8 * SIZE))
    assert {path.name for path in tmp_path.iterdir()} == {".used", "notes.txt", shards[0], shards[2], shards[3]}
    assert not now.room(15 * SIZE) and not (tmp_path / shards[2]).exists()  # all that is left is in use
    assert (tmp_path / shards[0]).exists() and not now.room(1)  # for a while it is not even searched
    clock = time.monotonic() + FULL
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    assert now.room(1)
