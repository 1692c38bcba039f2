"""A TarStore in another process or in a copy reads its own shard, whatever files that process has open."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.cache.zarr_store import TarStore

pytestmark = pytest.mark.filterwarnings("ignore:The data type")


@pytest.fixture(scope="module")
def shard(made: dict[str, Path]) -> Path:
    return made["frs"].parent / "cache" / "pass-0" / "shard-00000.tar"


def content(store: TarStore) -> dict[str, list[Any]]:
    """The values of every array."""
    group: Any = zarr.open_group(store, mode="r")
    arrays = dict(group.arrays()) | {f"index/{name}": array for name, array in group["index"].arrays()}
    return {name: np.asarray(array[...]).tolist() for name, array in arrays.items()}


def read_there(store: TarStore, pipe: Any) -> None:
    pipe.send(content(store))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_in_another_process(method: str, shard: Path) -> None:
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=read_there, args=(TarStore(shard), there))
    process.start()
    try:
        assert here.poll(120) and here.recv() == content(TarStore(shard))
    finally:
        process.join()


def test_in_a_copy(shard: Path) -> None:
    wanted = content(TarStore(shard))
    for made in (copy.copy, copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))):
        original = TarStore(shard)
        again = made(original)
        assert again == original
        original.close()
        assert content(again) == wanted


def test_the_descriptors_number_means_nothing(shard: Path, tmp_path: Path) -> None:
    """The number of the original's file is another file's by the time that it is unpickled."""
    original = TarStore(shard)
    stored, wanted = pickle.dumps(original), content(original)
    original.close()
    (tmp_path / "other").write_bytes(os.urandom(1 << 16))
    others = [os.open(tmp_path / "other", os.O_RDONLY) for _ in range(64)]
    try:
        assert content(pickle.loads(stored)) == wanted
    finally:
        for handle in others:
            os.close(handle)


def test_a_relative_path_and_another_folder(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shard.parent)
    stored = pickle.dumps(TarStore(shard.name))
    monkeypatch.chdir(tmp_path)
    assert content(pickle.loads(stored)) == content(TarStore(shard))


def test_a_shard_that_is_gone_says_so(shard: Path, tmp_path: Path) -> None:
    moved = tmp_path / "shard-00000.tar"
    moved.write_bytes(shard.read_bytes())
    stored = pickle.dumps(TarStore(moved))
    moved.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(stored)
