"""Caches in object stores and behind web servers: the same bytes, or one clear line."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import zarr

from pipeline.cache import manifest
from pipeline.cache.cache import Cache
from pipeline.cache.canonical import write_json
from pipeline.cache.inspect import describe
from pipeline.cache.sidecar import load_sidecar
from pipeline.cache.zarr_store import TarStore
from pipeline.cli.command import guarded
from pipeline.cli.main import main
from pipeline.codecs.group import save_codec
from pipeline.config import load_config
from pipeline.data.stream import LoaderOptions, Stream, stream_loader
from pipeline.errors import CacheError, ConfigError, CorruptCache, StoreError
from pipeline.integrity.verify import verify
from pipeline.progress import Silent
from pipeline.stage1.ranks import Ranks
from pipeline.stage2.teacher_data import prepare_teacher_data
from pipeline.storage import lease, object_store, owner
from pipeline.storage.base import Place
from pipeline.storage.files import atomic_file, checksum, discard
from pipeline.storage.lock import locked
from pipeline.storage.object_store import ObjectStorage
from pipeline.storage.place import key_of, storage_of
from pipeline.storage.urls import place
from pipeline.tools.reencode import calibration
from pipeline.tools.reencode.run import reencode
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector
from tests.helpers.launch import launch
from tests.helpers.related import RelatedSample, related_codec, short_training
from tests.helpers.servers import KEYS, Handler, s3_server, web_server
from tests.helpers.stages import stage1, stage2, tree

IMPATIENT = {"timeout": 0.5, "max_retries": 3, "retry_timeout": 10.0}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def cache_folder(made: dict[str, Path]) -> Path:
    return made["frs"].parent / "cache"


@pytest.fixture
def web(cache_folder: Path, tmp_path: Path) -> Iterator[type[Handler]]:
    shutil.copytree(cache_folder, tmp_path / "served" / "cache")
    with web_server(tmp_path / "served") as handler:
        yield handler


def test_a_config_without_a_codec_type_keeps_that_of_a_remote_cache(
    web: type[Handler], data: Path, teacher: dict[str, str], tmp_path: Path
) -> None:
    config = make_config(data, teacher, detector("retinanet"), tmp_path / "untyped", None)
    for folder, expected in (("cache", "frs"), ("none", "frs2")):
        _, sections = load_config(str(config), {"cache.dir": f"{web.address}/{folder}"})
        assert sections.cache.codec.type == expected


def test_a_trained_codec_is_stored_twice(s3: str) -> None:
    with short_training():
        codec = related_codec(RelatedSample(sizes=[(8, 12), (4, 6)], views=4))
    save_codec(codec, place("s3://bucket/trained"), {})
    found = objects("s3://bucket/trained")
    copies = {name.removeprefix("codec-copy/"): data for name, data in found.items() if name.startswith("codec-copy/")}
    assert "codec/net_first/c/0/0/0/0" in copies and len(found) == 2 * len(copies)
    assert all(found[name] == data for name, data in copies.items())


def objects(url: str) -> dict[str, bytes]:
    storage, key = remote(place(url))
    client = storage.connection.client()
    names = [row["path"] for page in client.list(f"{key}/") for row in page]
    return {name.removeprefix(f"{key}/"): bytes(client.get(name).bytes()) for name in names}


def remote(path: Place) -> tuple[ObjectStorage, str]:
    storage = storage_of(path)
    assert isinstance(storage, ObjectStorage)
    return storage, key_of(path)


def put(path: Place, content: bytes) -> None:
    """Replace an object, whoever holds its lock."""
    storage, key = remote(path)
    storage.put(key, content)


def remote_tree(url: str) -> dict[str, str]:
    found = {name: hashlib.sha256(data).hexdigest() for name, data in objects(url).items()}
    assert ".lock" not in found
    return {name: digest for name, digest in found.items() if name != "summary.json"}


def same_samples(one: Cache, other: Cache) -> None:
    assert one.passes() == other.passes() != []
    for number in one.passes():
        assert one.references(number) == other.references(number)
        for n, shard in enumerate(one.references(number)):
            for i in range(len(shard)):
                a, b = one.shard(number, n).read(i), other.shard(number, n).read(i)
                assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_stage_1_killed_and_finished_in_s3(
    s3: str, cache_folder: Path, data: Path, teacher: dict, tmp_path: Path
) -> None:
    """The very objects of an undisturbed local cache; the lock of the killed process is known to be dead."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path, **{"cache.dir": "s3://bucket/killed"})
    process = launch("stage1_cache_teacher.py", "--config", str(config))
    first = place("s3://bucket/killed/pass-0/shard-00000.json")
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert place("s3://bucket/killed/.lock").exists()
    assert not place("s3://bucket/killed/pass-1/manifest.json").exists()
    summary = stage1(config)
    assert summary["views_computed"] < summary["views"] == 24
    assert remote_tree("s3://bucket/killed") == tree(cache_folder)
    same_samples(Cache("s3://bucket/killed"), Cache(cache_folder))
    assert describe("s3://bucket/killed")["content"] == describe(cache_folder)["content"]
    assert verify("s3://bucket/killed")["files"] == verify(cache_folder)["files"]
    everything = b"".join(objects("s3://bucket/killed").values())
    assert not any(value.encode() in everything for value in KEYS.values())


def test_two_runs_of_stage_1_do_not_meet(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "STALE", 0.6)
    monkeypatch.setattr(lease, "POLL", 0.05)
    root = place("s3://bucket/locks")
    with locked(root):
        for here in (True, False):  # the owner's process is seen to run; or, from another machine, its beats
            if not here:
                monkeypatch.setattr(owner, "kernel", lambda: "")
            with pytest.raises(CacheError, match=r"s3://bucket/locks: another process is writing"), locked(root):
                pass
    assert not (root / ".lock").exists()
    put(root / ".lock", b'{"host": "gone", "process": 1, "kernel": "other"}')
    begun = time.monotonic()
    with locked(root) as lock:  # nobody updated it for a while
        assert time.monotonic() - begun > 0.6
        put(root / ".lock", b'{"token": "another owner"}')
        time.sleep(0.3)
        with pytest.raises(CacheError, match="another process took the lock over"):
            write_json(lock.place / "manifest.json", {})
    assert (root / ".lock").exists() and not (root / "manifest.json").exists()
    discard(root / ".lock")
    with locked(root):
        put(root / ".lock", bytes(1 << 20))  # what no owner writes
        time.sleep(0.3)
    discard(root / ".lock")
    with locked(root, wait=True) as lock:
        write_json(lock.place / "manifest.json", {})


def test_a_rank_writes_nothing_when_its_leaders_lock_is_gone(s3: str) -> None:
    folder = place("s3://bucket/ranks")
    with locked(folder) as lock:
        sent = pickle.loads(pickle.dumps(lock.share()))
        rank = SimpleNamespace(world=2, broadcast=lambda _: sent, _joined=ExitStack())
        root = Ranks.share_lock(cast(Any, rank), folder, None)
        write_json(root / "shard-00000.json", {})
        put(folder / ".lock", b'{"token": "another owner"}')
        with pytest.raises(CacheError, match=r"s3://bucket/ranks/\.lock: another process took the lock over"):
            write_json(root / "shard-00001.json", {})
        with pytest.raises(CacheError, match="another process took the lock over"):
            discard(root / "shard-00000.json")
        discard(folder / ".lock")
        with pytest.raises(CacheError, match="another process took the lock over"):
            write_json(root / "shard-00001.json", {})
    assert objects("s3://bucket/ranks").keys() == {"shard-00000.json"}


def test_a_store_that_contradicts_itself_is_not_asked_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "STALE", 0.2)
    monkeypatch.setattr(lease, "POLL", 0.05)
    held = lease.Lease(*remote(place("s3://bucket/contradicts")))
    monkeypatch.setattr(held, "_put", lambda mode: False)
    monkeypatch.setattr(held, "_found", lambda: None)
    with pytest.raises(CacheError, match=r"contradicts/\.lock: inconsistent lock state"):
        held.take(wait=False)


@pytest.mark.slow
def test_workers_of_reencode_write_nothing_when_the_lock_is_gone(s3: str, cache_folder: Path) -> None:
    class Thief(Silent):
        def start(self, title: str, total: int | None) -> None:
            put(place("s3://bucket/recoded/.lock"), b'{"token": "another owner"}')

    source = str(cache_folder)
    with pytest.raises(CacheError, match=r"recoded/\.lock: another process took the lock over"):
        reencode(source, "s3://bucket/recoded", {"type": "frs"}, None, {}, source, 2, lambda _: None, Thief())
    assert not multiprocessing.active_children()  # before the lock is freed none writes any more
    assert not any("shard" in name for name in objects("s3://bucket/recoded"))


def test_large_files_travel_in_parts(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "PART", 5 << 20)
    content = np.random.default_rng(0).bytes(13 << 20)
    with atomic_file(place("s3://bucket/large/shard.tar")) as file:
        file.write(content)
    found = checksum(place("s3://bucket/large/shard.tar"))  # in two ranges
    assert found == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with pytest.raises(ZeroDivisionError), atomic_file(place("s3://bucket/large/other.tar")) as file:
        file.write(content[: 1 // 0])
    with pytest.raises(OSError) as full, atomic_file(place("s3://bucket/large/other.tar")) as file:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # where a shard grows before it is put
    assert full.value.filename == tempfile.gettempdir()
    assert objects("s3://bucket/large").keys() == {"shard.tar"}


def test_web_servers_are_read_by_known_names(web: Any, cache_folder: Path, capsys: pytest.CaptureFixture) -> None:
    url = f"{web.address}/cache"
    same_samples(Cache(url), Cache(cache_folder))
    assert Cache(url).content() == Cache(cache_folder).content()
    assert verify(url)["bytes"] == verify(cache_folder)["bytes"]
    web.asked.clear()
    for verb in ("info", "verify"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["pipeline", verb, url])
            guarded(main)
        assert "MB" in capsys.readouterr().out
    assert {method for method, _, _ in web.asked} == {"GET", "HEAD"}
    (web.root / "cache/pass-1/manifest.json").unlink()
    with pytest.raises(CacheError, match=r"1 of 2 passes are complete: pass-1 has no manifest\.json"):
        verify(url)


@pytest.mark.filterwarnings("ignore:The data type")
def test_zarr_opens_a_remote_shard(web: Any, cache_folder: Path) -> None:
    name = "pass-0/shard-00001.tar"
    here = zarr.open_group(TarStore(cache_folder / name), mode="r")
    web.asked.clear()
    there = zarr.open_group(TarStore(f"{web.address}/cache/{name}"), mode="r")
    assert sorted(there.array_keys()) == sorted(here.array_keys())
    web.asked.clear()
    assert list(there["samples"][1]) == list(here["samples"][1]) and all(here["samples"][1])
    sidecar = load_sidecar(cache_folder / name.replace(".tar", ".json"))
    last = sidecar.samples[1].offset + sidecar.samples[1].size - 1
    assert web.asked == [("GET", f"/cache/{name}", f"bytes={sidecar.samples[1].offset}-{last}")]
    for array in ("samples", "index/record", "index/thumbnail"):
        np.testing.assert_array_equal(there[array][:], here[array][:])
        np.testing.assert_array_equal(there[array][0, ...], here[array][0, ...])


FAULTS = ["503", "drop", "stall", "cut", "cut without a tag", "stall inside", "flip"]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_retried(web: Any, cache_folder: Path, fault: str) -> None:
    remote, local = Cache(place(f"{web.address}/cache", IMPATIENT)), Cache(cache_folder)
    reader = remote.shard(0, 0)
    web.faults += [fault] if fault == "flip" else [fault, fault]
    found, expected = reader.read(1), local.shard(0, 0).read(1)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert len(web.asked) > 2 and not web.faults[1:]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("503", "HTTP status 503"),
        ("drop", "connection interrupted"),
        ("stall", "timed out"),
        ("cut", "connection interrupted"),
        ("404", "missing; expected a shard of the cache"),
        ("403", "forbidden"),
        ("no ranges", "does not support range requests"),
        ("flip", "size or checksum differs from the sidecar"),
    ],
)
def test_lasting_faults_are_one_line(web: Any, fault: str, words: str) -> None:
    remote = Cache(place(f"{web.address}/cache", {**IMPATIENT, "max_retries": 1}))
    reader = remote.shard(0, 0)
    web.faults += [fault] * 50
    with pytest.raises(CacheError, match=words) as raised:
        reader.read(1)
    assert "\n" not in str(raised.value) and f"{web.address}/cache/pass-0/shard-00000.tar" in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "words"), [("endless", "sends more than"), ("endless, undeclared", "cannot be used")]
)
def test_a_server_that_never_ends(web: Any, fault: str, words: str) -> None:
    """Small files, ranges of shards, and what verify reads: no more is taken in than there may be."""
    cache = Cache(f"{web.address}/cache")
    reader, (first, *_) = cache.shard(0, 0), cache.manifest(0)["files"].items()
    for before, call in (
        ([""], lambda: Cache(f"{web.address}/cache")),  # behind a HEAD
        ([], lambda: reader.read(1)),
        ([], lambda: manifest.check_pass(cache.root, 0, {"files": dict([first])}, "")),
    ):
        web.faults[:] = [*before, fault]
        with pytest.raises(CacheError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{web.address}/cache/")
    assert web.sent < 200 << 20


@pytest.mark.parametrize("name", ["pass-0/shard-00001.tar", "codec/score_basis/c/0/0"])
def test_the_advice_about_a_bad_object_helps(
    s3: str, web: Any, made: dict[str, Path], cache_folder: Path, name: str
) -> None:
    (web.root / "cache" / name).write_bytes(b"bad")
    with pytest.raises(CorruptCache, match="replace it on the server with an intact copy"):
        verify(f"{web.address}/cache")
    upload(web.root / "cache", f"s3://bucket/{name}")
    root = place(f"s3://bucket/{name}")
    with pytest.raises(CorruptCache, match=r"delete .* run stage 1 again") as raised:
        verify(root)
    discard(root / ("codec.json" if "delete the cache's codec.json" in str(raised.value) else name))
    stage1(made["frs"], **{"cache.dir": str(root)})
    assert remote_tree(str(root)) == tree(cache_folder)


def test_a_local_file_that_is_too_large(tmp_path: Path) -> None:
    with open(tmp_path / "plan.json", "wb") as file:
        file.truncate(1 << 40)  # takes no room
    with pytest.raises(CacheError, match=r"plan\.json: expected at most \d+ bytes"):
        Cache(tmp_path)


def test_mistakes_are_one_line(s3: str, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {**IMPATIENT, "max_retries": 1}
    cases = {
        "s3://bucket/nowhere": "no cache here",
        f"{web.address}/nowhere": "no cache here",
        "http://127.0.0.1:9/cache": "connection refused",
        "http://no-such-host.invalid/cache": "no such host",
        "ftp://host/cache": "found ftp://",
        "az://container/cache": "no credentials or account",
        "s3:///cache": "expected a bucket or host",
        "https://me:never-to-be-shown@host/cache?key=never-to-be-shown": "no user, password or query",
        "https://me:never-to-be-shown?@host/cache": "no user, password or query",
        "https://never-to-be-shown:me#@host/cache": "no user, password or query",
        "http://[::1/cache": "expected http://bucket-or-host/path",
        "s3://me:never-to-be-shown\u2100@host/cache": "expected s3://bucket-or-host/path",
    }
    for url, words in cases.items():
        with pytest.raises((CacheError, ConfigError), match=words) as raised:
            Cache(place(url, quick))
        assert "never-to-be-shown" not in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(StoreError, match="no such bucket s3://nobody; create it"), locked(place("s3://nobody/cache")):
        pass
    for key in ("secret_access_key", "enpoint"):
        with pytest.raises(ConfigError, match=f"cache.store.{key}: unknown") as raised:
            place("s3://bucket/x", {key: "never-to-be-shown"})
        assert "never-to-be-shown" not in str(raised.value)
    for key, value in {"timeout": "long", "max_retries": -1, "endpoint": "localhost", "region": "a b"}.items():
        with pytest.raises(ConfigError, match=rf"cache.store.{key}: expected .*, found {value!r}"):
            place("s3://bucket/x", {key: value})
    with pytest.raises(StoreError, match="cannot be used"):
        place("s3://bucket/x", {"timeout": 1e30}).exists()
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    with pytest.raises(StoreError, match="plain http is not allowed"):
        Cache(place("s3://bucket/other", {**quick, "timeout": 0.7}))  # another client than before


def test_stage_1_cannot_write_to_a_web_server(web: Any, made: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="is read-only"):
        stage1(made["frs"], **{"cache.dir": f"{web.address}/cache"})


def test_a_web_server_is_a_source_to_reencode_from(
    web: Any, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read only; and the config's options are those of the config's own store."""
    jobs: list[Any] = []
    monkeypatch.setattr(calibration, "load_or_calibrate_codec", lambda job, sample: jobs.append(job))
    source = Cache(f"{web.address}/cache")
    options = {"cache.dir": "s3://bucket/mine", "cache.store": {"region": "eu-west-1"}}
    calibration.calibrate_with(str(made["frs"]), options, source, source.plan, tmp_path, print, Silent())
    assert [job.root for job in jobs] == [tmp_path]


def test_no_secret_travels(s3: str) -> None:
    root = place("s3://bucket/x")
    assert not root.exists()  # a client is there
    for text in (repr(root), str(root), repr(pickle.dumps(root))):
        assert not any(value in text for value in KEYS.values())


def test_stage_2_streams_from_s3(s3: str, made: dict[str, Path], cache_folder: Path) -> None:
    upload(cache_folder, "s3://bucket/stage2")
    options = {"work_dir": str(cache_folder.parent / "remote_run"), "cache.dir": "s3://bucket/stage2"}
    summary = stage2(made["frs"], **options)
    assert summary["content"] == Cache(cache_folder).content() and summary["images"] == 12


@pytest.mark.slow
def test_workers_stream_and_the_second_time_from_disk(
    web: Any, made: dict[str, Path], cache_folder: Path, tmp_path: Path
) -> None:
    """Two worker processes with clients of their own share a disk cache; then the server is not asked for a byte."""
    local = {"cache.local": str(tmp_path / "disk"), "cache.dir": f"{web.address}/cache"}
    web.faults += ["503", "cut", "drop"]
    runs = [batches(made["frs"], workers, **options) for workers, options in ((0, {}), (2, local), (2, local))]
    asked = [len(web.asked)]
    for found in runs[1:]:
        assert found == runs[0]
    pid_one = batches(made["frs"], 0, **local)
    assert pid_one == runs[0]
    requests = [path for _, path, _ in web.asked[asked[0] :]]
    assert requests and not any(path.endswith(".tar") or "shard" in path for path in requests)
    assert (tmp_path / "disk").stat().st_nlink and sorted(os.listdir(tmp_path / "disk"))


def upload(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".lock":
            put(place(f"{url}/{path.relative_to(folder).as_posix()}"), path.read_bytes())


def batches(config: Path, workers: int, **options: Any) -> list[Any]:
    """Digests of everything in an epoch's batches, in order."""
    cfg, sections = load_config(str(config), options)
    stream = Stream(prepare_teacher_data(cfg, sections).stream, 4, seed=1)
    return [
        [s.img_id for s in batch["data_samples"]]
        + [hashlib.sha256(a.numpy().tobytes()).hexdigest() for a in batch["teacher"].arrays.values()]
        for batch in stream_loader(stream, LoaderOptions(workers))
    ]
