"""Nothing below a cache's folder leads out of it, blocks, or is endless: links, FIFOs and devices are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cache.cache import Cache
from pipeline.cache.plain import locked_cache
from pipeline.config import load_config
from pipeline.errors import CorruptCache, PipelineError
from pipeline.integrity.repair import repair
from pipeline.integrity.verify import verify
from pipeline.progress import Silent
from pipeline.storage.disk_cache import DiskCache
from pipeline.storage.extents import Sha256Extent
from pipeline.storage.files import atomic_file, atomic_folder, discard
from tests.helpers.stages import stage1

SHA = "a" * 64


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder whose file must survive whatever a cache contains."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("precious")
    return tmp_path / "outside"


@pytest.fixture
def cache(made: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache")
    return tmp_path / "cache"


def link_file(path: Path, outside: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(outside / "victim")


def link_folder(path: Path, outside: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.symlink_to(outside)


def fifo(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


PLACES: list[tuple[str, Callable[[Path, Path], None]]] = [
    ("summary.json", link_file),
    ("summary.json.tmp", link_file),
    ("plan.json", link_file),
    (".lock", link_file),
    (".lock", fifo),
    ("codec.json", device),
    ("codec", link_folder),
    ("codec/zarr.json", link_file),
    ("pass-0", link_folder),
    ("pass-0/manifest.json", link_file),
    ("pass-0/manifest.json.tmp", link_file),
    ("pass-1/shard-00000.tar", fifo),
    ("pass-1/shard-00000.json", device),
    ("pass-7", link_folder),
]


@pytest.mark.parametrize(("name", "change"), PLACES, ids=[f"{name}-{change.__name__}" for name, change in PLACES])
def test_a_cache_with_something_else_than_files(
    made: dict[str, Path], cache: Path, outside: Path, name: str, change: Callable[[Path, Path], None]
) -> None:
    change(cache / name, outside)
    cfg, sections = load_config(str(made["frs"]), {"cache.dir": str(cache)})
    expected = r"expected a regular file( or folder)?, found a (link|FIFO)"

    with pytest.raises(CorruptCache, match=expected):
        Cache(cache)
    with pytest.raises(PipelineError, match=expected):
        verify(cache)
    with pytest.raises(CorruptCache, match=expected):
        repair(cfg, sections, lambda _: None, Silent())
    with pytest.raises(CorruptCache, match=expected):
        stage1(made["frs"], **{"cache.dir": str(cache)})

    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("victim", "precious")]


def test_a_cache_may_lie_behind_a_link(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(cache)
    verify(tmp_path / "elsewhere")


def test_temporary_files_have_new_names(tmp_path: Path, outside: Path) -> None:
    """A link with the old, guessable name is neither followed nor in the way."""
    for name in ("one.json.tmp", "many.tmp"):
        (tmp_path / name).symlink_to(outside / "victim")
    with atomic_file(tmp_path / "one.json") as file:
        file.write(b"1")
    with atomic_folder(tmp_path / "many") as folder:
        (folder / "two").write_text("2")
    assert (tmp_path / "one.json").read_text() == "1" and (tmp_path / "many" / "two").read_text() == "2"
    assert (outside / "victim").read_text() == "precious"


def test_a_link_is_deleted_and_not_what_it_points_to(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "link").symlink_to(outside / "victim")
    discard(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink() and (outside / "victim").exists()
    (tmp_path / "folder").symlink_to(outside)
    with pytest.raises(CorruptCache, match="expected a folder, found a link"):
        discard(tmp_path / "folder" / "victim")
    assert (outside / "victim").exists()


def test_the_lock_deletes_what_killed_runs_left(cache: Path, outside: Path) -> None:
    (cache / f"summary.json.{'0' * 16}.tmp").write_text("half")
    (cache / "pass-0" / f"shard-00000.tar.{'1' * 16}.tmp").write_text("half")
    (cache / f"codec.{'2' * 16}.tmp" / "c").mkdir(parents=True)
    (cache / "mine.tmp").write_text("kept")
    with locked_cache(cache):
        assert [path.name for path in cache.rglob("*.tmp")] == ["mine.tmp"]


def test_links_in_a_disk_cache(tmp_path: Path, outside: Path) -> None:
    """Named by the sha256 of a shard, they would be read, overwritten or deleted."""
    disk = DiskCache(str(tmp_path / "disk"), 1 << 20, begun=0.0)
    for name in (SHA, f"{SHA}.json"):
        (tmp_path / "disk" / name).symlink_to(outside / "victim")
    disk.keep(SHA, 0, b"overwritten")
    disk.keep_small(SHA, b"overwritten")
    disk.touch(SHA)
    assert disk.read(SHA, Sha256Extent.of(0, b"prec")) is None and disk.read_small(SHA) is None
    (tmp_path / "disk" / f"{SHA}.json").unlink()
    (tmp_path / "disk" / f"{SHA}.json").symlink_to("/dev/zero")
    assert disk.read_small(SHA) is None
    (tmp_path / "disk" / ".used").unlink(missing_ok=True)
    (tmp_path / "disk" / ".used").symlink_to(outside / "victim")
    assert not disk.room(10)
    assert (outside / "victim").read_text() == "precious"
