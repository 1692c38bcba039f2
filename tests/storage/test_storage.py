"""The contract of `Storage`: a folder, and a bucket behind a real S3 API, pass the same tests."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from pipeline.errors import CacheError, CorruptCache, StoreError
from pipeline.storage.base import Storage
from pipeline.storage.connection import Connection
from pipeline.storage.extents import Crc32cExtent, Extent, Sha256Extent
from pipeline.storage.files import read_small
from pipeline.storage.local import LocalStorage
from pipeline.storage.object_store import ObjectStorage
from pipeline.storage.place import key_of, storage_of
from tests.helpers.servers import s3_server

RUNS = count()


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return LocalStorage(tmp_path)
    request.getfixturevalue("s3")
    return ObjectStorage(Connection("s3://bucket"))


@pytest.fixture
def folder() -> str:
    """A key that no other test has used."""
    return f"run-{next(RUNS)}"


def write(storage: Storage, key: str, content: bytes) -> None:
    with storage.write_atomic(key) as file:
        file.write(content)


def test_a_file_is_written_read_and_replaced(storage: Storage, folder: str) -> None:
    key = f"{folder}/pass-0/plan.json"

    write(storage, key, b"longer than its successor")
    write(storage, key, b"plan")

    assert (storage.read(key, 100), storage.size(key)) == (b"plan", 4)


def test_a_write_that_fails_changes_nothing(storage: Storage, folder: str) -> None:
    key = f"{folder}/plan.json"
    write(storage, key, b"old")

    for name in ("plan.json", "other.json"):
        with pytest.raises(ZeroDivisionError), storage.write_atomic(f"{folder}/{name}") as file:
            file.write(b"new" * (1 // 0))

    assert storage.read(key, 100) == b"old"
    assert storage.list_dir(folder) in (None, ["plan.json"])
    with pytest.raises(FileNotFoundError):
        storage.size(f"{folder}/other.json")


def test_a_missing_file(storage: Storage, folder: str) -> None:
    key = f"{folder}/missing"

    for read in (storage.size, lambda key: storage.read(key, 100), lambda key: storage.read_range(key, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read(key)

    storage.delete(key)


def test_another_failure_is_not_a_missing_file(storage: Storage, folder: str) -> None:
    """What cannot be read must not be taken for missing and computed again."""
    write(storage, f"{folder}/file", b"")
    storages = {LocalStorage: storage, ObjectStorage: ObjectStorage(Connection("s3://no-such-bucket"))}

    with pytest.raises((OSError, StoreError, CorruptCache)) as raised:
        storages[type(storage)].read(folder, 100)

    assert not isinstance(raised.value, FileNotFoundError)


def test_a_file_is_deleted(storage: Storage, folder: str) -> None:
    write(storage, f"{folder}/file", b"bytes")

    storage.delete(f"{folder}/file")

    assert not (storage.place(folder) / "file").exists()


def test_a_read_is_bounded(storage: Storage, folder: str) -> None:
    write(storage, f"{folder}/file", bytes(1000))

    assert len(storage.read(f"{folder}/file", 1000)) == 1000
    with pytest.raises(CorruptCache, match=f"{folder}/file: .*999"):
        storage.read(f"{folder}/file", 999)


@dataclass(frozen=True)
class Layout:
    size: int
    extents: tuple[Extent, ...]
    sha256: str = "0" * 64


@pytest.mark.parametrize("kind", [Crc32cExtent, Sha256Extent])
def test_ranges(storage: Storage, folder: str, kind: type[Extent]) -> None:
    key, content = f"{folder}/shard.tar", bytes(range(256)) * 8
    write(storage, key, content)
    extents = tuple(kind.of(at, content[at:][:512]) for at in range(0, 2048, 512))

    assert storage.read_range(key, 100, 50) == (content[100:150], 2048)
    assert storage.read_range(key, 2000, 500) == (content[2000:], 2048)
    ranges = storage.open_ranges(key, Layout(2048, extents))
    assert b"".join(map(ranges.read, extents)) == content
    fetched = {offset: data for fetch in ranges.fetches(extents) for offset, data in fetch().items()}
    assert fetched == ({} if ranges.local else {e.offset: content[e.offset :][: e.size] for e in extents})
    ranges.close()


def test_ranges_of_a_missing_shard(storage: Storage, folder: str) -> None:
    with pytest.raises(CacheError, match=r"shard\.tar: missing; expected a shard of the cache"):
        storage.open_ranges(f"{folder}/shard.tar", Layout(512, ())).read(Sha256Extent(0, 512, "0" * 64))


def test_a_listing(storage: Storage, folder: str) -> None:
    for name in ("b", "a/c", "a/d"):
        write(storage, f"{folder}/{name}", b"")

    listed = {LocalStorage: ["a/", "b"], ObjectStorage: None}[type(storage)]
    assert storage.list_dir(folder) == listed
    assert storage.list_dir(f"{folder}/missing") in (None, [])


def test_a_folder_is_written(storage: Storage, folder: str) -> None:
    for content in (b"old", b"new"):
        with storage.write_folder(f"{folder}/codec") as temporary:
            (temporary / "table").mkdir()
            (temporary / "table/zarr.json").write_bytes(content)
    with pytest.raises(ZeroDivisionError), storage.write_folder(f"{folder}/other") as temporary:
        (temporary / "zarr.json").write_bytes(bytes(1 // 0))

    assert storage.read(f"{folder}/codec/table/zarr.json", 100) == b"new"
    assert not (storage.place(folder) / "other" / "zarr.json").exists()


def test_places(storage: Storage, folder: str) -> None:
    path = storage.place(folder) / "plan.json"
    write(storage, f"{folder}/plan.json", b"plan")

    assert str(path) == storage.describe(f"{folder}/plan.json")
    assert (path.name, path.parent, path.with_suffix(".tar").name) == ("plan.json", storage.place(folder), "plan.tar")
    assert path.exists() and path.is_file() and read_small(path) == b"plan"
    assert storage_of(path).local_path(key_of(path)) == {LocalStorage: path, ObjectStorage: None}[type(storage)]


def test_a_lock_excludes_and_is_released(storage: Storage, folder: str) -> None:
    with storage.lock(folder, wait=False) as lock:
        with pytest.raises(CacheError, match=f"{folder}: another process is writing"), storage.lock(folder, False):
            pass
        write(storage_of(lock.place), f"{key_of(lock.place)}/plan.json", b"plan")

    with storage.lock(folder, wait=False):
        assert read_small(lock.place / "plan.json") == b"plan"


def test_a_lock_is_waited_for(storage: Storage, folder: str) -> None:
    order: list[str] = []

    def second() -> None:
        with storage.lock(folder, wait=True):
            order.append("second")

    with storage.lock(folder, wait=False):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.3)
        order.append("first")
    waiting.join(20)

    assert order == ["first", "second"]


def write_in_child(storage: Storage, key: str) -> None:
    write(storage, f"{key}/child", storage.read(f"{key}/parent", 100))


def test_a_spawned_process_gets_a_storage_of_its_own(storage: Storage, folder: str) -> None:
    """Also one that writes under a lock of this process."""
    write(storage, f"{folder}/parent", b"bytes")

    with storage.lock(folder, wait=False) as lock:
        place = lock.share()
        child = multiprocessing.get_context("spawn").Process(
            target=write_in_child, args=(storage_of(place), key_of(place))
        )
        child.start()
        child.join(60)

    assert child.exitcode == 0
    assert storage.read(f"{folder}/child", 100) == b"bytes"


def test_a_joined_lock(storage: Storage, folder: str) -> None:
    with storage.lock(folder, wait=False) as lock:
        shared = lock.share()
        with storage_of(shared).join(key_of(shared)):
            write(storage_of(shared), f"{key_of(shared)}/file", b"of a rank")
            with pytest.raises(CacheError, match="another process is writing"), storage.lock(folder, wait=False):
                pass

    with storage.lock(folder, wait=False):
        pass
