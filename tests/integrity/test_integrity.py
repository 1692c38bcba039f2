"""A truncated, bit-flipped, incomplete or hostile cache raises an error that names the file or sample."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from google_crc32c import value as crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cache import tar
from pipeline.cache.arrays import ArraySpec, decode_chunk, encode_chunk
from pipeline.cache.cache import Cache
from pipeline.cache.canonical import read_json, write_json
from pipeline.cache.reader import ShardReader
from pipeline.cache.sidecar import load_sidecar
from pipeline.cache.versions import VERSION
from pipeline.cache.zarr_store import TarStore
from pipeline.errors import CacheError, CorruptCache, StaleCache, StoreError
from pipeline.integrity.verify import verify


@pytest.fixture
def cache(made: dict[str, Path], tmp_path: Path) -> Path:
    """A private copy of a finished cache."""
    return Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))


def read_all(root: Path) -> None:
    cache = Cache(root)
    for number in cache.passes():
        for n, shard in enumerate(cache.references(number)):
            for i in range(len(shard)):
                cache.shard(number, n).read(i)


def test_an_intact_cache_verifies(cache: Path) -> None:
    read_all(cache)
    assert verify(cache)["files"] > 8


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_of_a_shard_is_named(made: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    source = made["frs"].parent / "cache" / "pass-0" / "shard-00000.tar"
    raw = bytearray(source.read_bytes())
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    path = tmp_path / source.name
    path.write_bytes(raw)
    path.with_suffix(".json").write_bytes(source.with_suffix(".json").read_bytes())
    reader = None
    with pytest.raises(CorruptCache, match="shard-00000"):
        reader = ShardReader(path)  # the head is checked here
        hit = [n for n, e in enumerate(reader.sidecar.samples) if e.offset <= at // 8 < e.offset + e.size]
        for n in range(len(reader)):
            if n in hit:
                with pytest.raises(CorruptCache, match=f"sample {n} "):
                    reader.read(n)
                raise CorruptCache("shard-00000: named the sample")
            reader.read(n)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_of_a_small_file_is_refused(
    made: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    root = tmp_path / "copy"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(made["frs"].parent / "cache", root)
    names = ["plan.json", "codec.json", "pass-0/plan.json", "pass-0/manifest.json", "pass-0/shard-00000.json"]
    path = root / data.draw(st.sampled_from(names))
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    with pytest.raises(CacheError):
        verify(root)


def test_truncated_shard(cache: Path) -> None:
    path = cache / "pass-0" / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-1024])
    with pytest.raises(CorruptCache, match="shard-00001"):
        read_all(cache)
    with pytest.raises(CorruptCache, match="shard-00001"):
        verify(cache)


def test_missing_files_are_named(cache: Path) -> None:
    (cache / "pass-1" / "shard-00000.tar").unlink()
    with pytest.raises(CacheError, match=r"pass-1.shard-00000"):
        read_all(cache)
    (cache / "codec" / "zarr.json").unlink()
    with pytest.raises(CorruptCache, match="codec"):
        verify(cache)
    (cache / "plan.json").unlink()
    with pytest.raises(CacheError, match=r"plan\.json: missing, but the cache has later files"):
        Cache(cache)


def test_a_foreign_table_is_named(cache: Path) -> None:
    """zarr lists every array in codec/. An array that is not in codec.json must not reach the codec."""
    shutil.copytree(cache / "codec" / "score_mean", cache / "codec" / "extra")
    with pytest.raises(CorruptCache, match="extra"):
        Cache(cache).codec_manifest()


def test_few_files_stay_open(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cache.cache.OPEN_SHARDS", 2)
    opened = Cache(cache)
    keys = [(number, n) for number in opened.passes() for n in range(len(opened.references(number)))]
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert len(keys) > 2
    for _ in range(2):
        for key in keys:
            opened.shard(*key).read(0)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    del opened
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_bad_sector_is_named_and_no_file_stays_open(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    opened = Cache(cache)
    opened.references(0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr("os.pread", bad)
    with pytest.raises(
        StoreError, match=r"shard-00000\.tar: bytes 0-\d+ cannot be read \(Input/output error\); .*repair"
    ):
        opened.shard(0, 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_shards_of_another_cache_are_refused(cache: Path) -> None:
    path = cache / "pass-0" / "shard-00000.json"
    sidecar = read_json(path)
    write_json(path, {**sidecar, "plan": "0" * 64})
    with pytest.raises(CorruptCache, match="sha256 differs from the manifest"):
        read_all(cache)
    for name in ("plan.json", "codec.json"):
        value = read_json(cache / name)
        write_json(cache / name, {**value, "more": 1})
        with pytest.raises((StaleCache, CacheError), match=r"another|belongs"):
            read_all(cache)
        write_json(cache / name, value)


def test_declared_sizes_are_checked_before_decompression() -> None:
    spec = ArraySpec("features", (1000,), "float32", ("x",), 9)
    chunk = bytearray(encode_chunk(spec, np.zeros(1000, np.float32)))
    chunk[4:8] = struct.pack("<I", 1 << 30)  # Blosc declares a decoded size of 1 GiB
    bomb = bytes(chunk[:-4]) + crc32c(bytes(chunk[:-4])).to_bytes(4, "little")
    with pytest.raises(CorruptCache, match="declares"):
        decode_chunk(spec, bomb)


def test_only_plain_tar_members() -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CHRTYPE, tarfile.DIRTYPE):
        info = tarfile.TarInfo("features/c/0/0")
        info.type, info.linkname = kind, "/etc/passwd"
        with pytest.raises(CorruptCache, match="not a plain file"):
            list(tar.parse(info.tobuf(tarfile.USTAR_FORMAT)))
    with pytest.raises(CorruptCache):
        list(tar.parse(tar.member("x", bytes(600))[:-512]))


def test_a_missing_chunk_is_not_read_as_zeros(tmp_path: Path) -> None:
    """zarr reads a missing chunk as zeros. Here a chunk of zeros is stored, and a missing chunk is an error."""
    from tests.helpers.shards import SPECS, random_rows, write_shard

    rows = random_rows(2)
    rows[1]["features"][:] = 0
    path = write_shard(tmp_path / "shard-00000.tar", rows)
    assert not ShardReader(path).read(1)["features"].any()
    assert not zarr.open_group(TarStore(path), mode="r")["features"][1].any()
    raw = path.read_bytes()
    at = raw.index(SPECS[0].chunk_name(1).encode())
    size = 512 + -(-int(raw[at + 124 : at + 135], 8) // 512) * 512
    path.write_bytes(raw[:at] + raw[at + size :])
    with pytest.raises(CorruptCache, match=r"no chunk features/c/1/0/0"):
        zarr.open_group(TarStore(path), mode="r")["features"][1]
    with pytest.raises(CorruptCache, match=r"expected \d+ bytes, found"):
        ShardReader(path)


def test_another_version_is_refused(cache: Path) -> None:
    plan = read_json(cache / "plan.json")
    for change in ({"version": VERSION + 1}, {"format": "something"}, {"format": "x" * 10000}):
        write_json(cache / "plan.json", {**plan, **change})
        with pytest.raises(
            StaleCache, match=r"expected format 'frs-teacher-cache' of version .*, found .*make a new cache"
        ) as caught:
            Cache(cache)
        assert len(str(caught.value)) < 500


def test_sidecar_extents_must_tile(cache: Path) -> None:
    path = cache / "pass-0" / "shard-00000.json"
    sidecar = read_json(path)
    sidecar["samples"][1][0] += 512
    write_json(path, sidecar)
    with pytest.raises(CorruptCache, match="gap"):
        load_sidecar(path)
