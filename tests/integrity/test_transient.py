"""Only "no such file" is missing: after any other error nothing is computed again, discarded or called missing."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.cache import Cache
from pipeline.cli.command import guarded
from pipeline.cli.main import main
from pipeline.config import load_config
from pipeline.errors import CorruptCache, StoreError
from pipeline.integrity.verify import verify
from pipeline.stage2.teacher_data import prepare_teacher_data
from pipeline.storage.local import files_to_keep_open
from tests.helpers.stages import tree

CASES = [
    ("repair", "plan.json", errno.ESTALE),
    ("repair", "codec.json", errno.EMFILE),
    ("repair", "codec/feature_mean/c/0/0/0", errno.EIO),
    ("repair", "pass-0/plan.json", errno.EACCES),
    ("repair", "pass-0/manifest.json", errno.EIO),
    ("repair", "pass-1/shard-00001.tar", errno.EIO),
    ("repair", "pass-1/shard-00000.json", errno.ESTALE),
    ("stage1", "plan.json", errno.EACCES),
    ("stage1", "codec.json", errno.EIO),
    ("stage1", "pass-0/plan.json", errno.EMFILE),
    ("stage1", "pass-1/shard-00000.json", errno.ESTALE),
]


@pytest.fixture
def work(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the finished frs cache. Returns a config for it."""
    shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache")
    config = tmp_path / "config.py"
    config.write_text(f"_base_ = {str(made['frs'])!r}\ncache = dict(dir={str(tmp_path / 'cache')!r})\n")
    return config


@contextmanager
def failing(path: Path, number: int) -> Iterator[None]:
    """Every attempt to open `path` fails with this error, in Python's own open and in os.open."""
    with pytest.MonkeyPatch.context() as patch:

        def guard(original: Callable[..., Any]) -> Callable[..., Any]:
            def opened(file: Any, *given: Any, **more: Any) -> Any:
                if isinstance(file, str | os.PathLike) and Path(file) == path:
                    raise OSError(number, os.strerror(number), str(file))
                return original(file, *given, **more)

            return opened

        patch.setattr("builtins.open", guard(open))
        patch.setattr("os.open", guard(os.open))
        patch.setattr(io, "open", guard(io.open))
        patch.setattr("pipeline.storage.ranges.FileIO", guard(io.FileIO))
        yield


def ended(capsys: pytest.CaptureFixture, *words: str | Path) -> str:
    """Run a verb that must end with code 2. Returns its one line."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", ["frs-cache", *map(str, words)])
        guarded(main)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(("verb", "name", "number"), CASES)
def test_nothing_is_discarded(verb: str, name: str, number: int, work: Path, capsys: pytest.CaptureFixture) -> None:
    cache = work.parent / "cache"
    before = tree(cache)
    with failing(cache / name, number):
        line = ended(capsys, verb, "--config", work)
    assert os.strerror(number) in line and name.rpartition("/")[2] in line and "missing" not in line
    assert tree(cache) == before


def test_stage_2_says_what_the_system_says(work: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("pass-0/shard-00000.json", "pass-0/shard-00000.tar"):
        with failing(work.parent / "cache" / name, errno.EACCES):
            line = ended(capsys, "stage2", "--config", work, "--work-dir", work.parent / "run")
        assert "Permission denied" in line and name in line and "stage 1" not in line


def test_what_is_missing_is_called_missing(work: Path, capsys: pytest.CaptureFixture) -> None:
    (work.parent / "cache" / "pass-1" / "shard-00000.json").unlink()
    assert "missing" in ended(capsys, "verify", work.parent / "cache")


def test_open_shards_stay_below_the_limit(work: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        assert files_to_keep_open(320) == 320 if hard == resource.RLIM_INFINITY or hard >= 640 else hard // 2
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64, "the soft limit should be raised"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_hard_limit_is_respected(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (4, 4))
    monkeypatch.setattr("resource.setrlimit", lambda *_: (_ for _ in ()).throw(ValueError("not allowed")))
    assert files_to_keep_open(320) == 2
    cache = Cache(work.parent / "cache")
    shards = [(number, n) for number in (0, 1) for n in range(len(cache.references(number)))]
    assert len(shards) > 3
    for key in shards * 2:
        cache.shard(*key).read(0)
    assert len(cache._readers) == 2


def test_verify_does_not_call_an_unreadable_file_damaged(work: Path) -> None:
    shard = work.parent / "cache" / "pass-1" / "shard-00001.tar"
    with (
        failing(shard, errno.ESTALE),
        pytest.raises(StoreError, match=r"cannot be read \(Stale file handle\); nothing"),
    ):
        verify(work.parent / "cache")


@pytest.mark.parametrize("change", ["missing", "truncated"])
def test_stage2_finds_a_lost_shard_before_the_first_step(work: Path, change: str) -> None:
    shard = work.parent / "cache" / "pass-1" / "shard-00001.tar"
    if change == "missing":
        shard.unlink()
    else:
        os.truncate(shard, 100)
    wanted = "but missing; run stage 1" if change == "missing" else "by the manifest, found 100; .*repair"
    with pytest.raises(CorruptCache, match=rf"pass-1/shard-00001\.tar: .*{wanted}"):
        prepare_teacher_data(*load_config(str(work)))
