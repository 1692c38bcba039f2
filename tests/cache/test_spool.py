"""The samples of a shard wait for its head in memory or in a file without a name."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache import spool
from pipeline.cache.spool import SampleSpool
from tests.helpers.mixed_cache import make_mixed
from tests.helpers.stages import tree

SAMPLES = [(n, n % 2, bytes([n]) * (100 * n + 1)) for n in range(20)]


@pytest.mark.parametrize("limit", [0, 1, 5000, 1 << 20])
def test_samples_come_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", limit)
    with SampleSpool(tmp_path / "pass-0/shard-00000.tar") as kept:
        for sample in SAMPLES:
            kept.add(*sample)
        assert list(kept.samples()) == SAMPLES == list(kept.samples())
        assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing of it has a name"


def test_a_shard_in_a_file_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tree(make_mixed(tmp_path / "memory", {}))
    monkeypatch.setattr(spool, "IN_MEMORY", 1)
    assert tree(make_mixed(tmp_path / "file", {})) == one


def test_a_full_disk_names_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spool, "IN_MEMORY", 1)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)  # where a spool that is too large goes
    with SampleSpool(tmp_path / "shard-00000.tar") as kept, pytest.raises(OSError) as caught:
        kept.add(*SAMPLES[3])
    assert caught.value.filename == str(tmp_path / "shard-00000.tar")
