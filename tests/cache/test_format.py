"""Contracts of the format: zarr writes and reads the very same bytes, three readers agree, bytes are reproducible."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline.cache.arrays import decode_chunk, encode_chunk, spec_from_metadata
from pipeline.cache.cache import Cache
from pipeline.cache.canonical import canonical
from pipeline.cache.reader import ShardReader
from pipeline.cache.zarr_store import TarStore
from pipeline.errors import CodecError
from pipeline.storage import local
from tests.helpers.shards import SPECS, random_rows, write_shard


def keys(fname: str) -> tuple[str | None, str | None]:
    """The rule of docs/format.md for webdataset's group_by_keys."""
    array, found, chunk = fname.partition("/c/")
    if not found or "/" in array:
        return None, None
    return chunk.split("/")[0], array


def test_zarr_writes_the_same_bytes(tmp_path: Path) -> None:
    for spec in SPECS:
        row = random_rows(1)[0][spec.name]
        compressors = [BloscCodec(cname="zstd", clevel=spec.level, shuffle="shuffle")] if spec.level else []
        array = zarr.create_array(
            tmp_path / spec.name,
            shape=(1, *spec.shape),
            chunks=(1, *spec.shape),
            dtype=spec.dtype,
            zarr_format=3,
            compressors=[*compressors, Crc32cCodec()],
            dimension_names=["sample", *spec.dims],
        )
        array[0] = row
        chunk = (tmp_path / spec.name / spec.chunk_name(0).removeprefix(f"{spec.name}/")).read_bytes()
        assert chunk == encode_chunk(spec, row)
        meta = json.loads((tmp_path / spec.name / "zarr.json").read_text())
        assert meta == spec.metadata(1), spec.name
        assert spec_from_metadata(spec.name, meta) == spec


def test_three_readers_agree(tmp_path: Path) -> None:
    rows = random_rows(4)
    path = write_shard(tmp_path / "shard-00000.tar", rows)
    in_place = zarr.open_group(TarStore(path), mode="r")
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    unpacked = zarr.open_group(tmp_path / "out", mode="r")
    tar = wds.tariterators

    def group(urls: Any) -> Any:
        return tar.group_by_keys(tar.tar_file_expander(tar.url_opener(urls)), keys=keys, lcase=False)

    streamed = list(wds.DataPipeline(wds.SimpleShardList([str(path)]), group))
    assert [sample["__key__"] for sample in streamed] == ["0", "1", "2", "3"]
    reader = ShardReader(path)
    for n, row in enumerate(rows):
        for spec in SPECS:
            payload = streamed[n][spec.name][:-4]
            raw = Blosc().decode(payload) if spec.level else payload
            alone = np.frombuffer(raw, spec.dtype).reshape(spec.shape)
            for found in (in_place[spec.name][n], unpacked[spec.name][n], alone, reader.read(n)[spec.name]):
                np.testing.assert_array_equal(found, row[spec.name])
    assert list(in_place["index/image_id"][:]) == [0, 1, 2, 3]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    one, other = (write_shard(tmp_path / f"{n}.tar", random_rows(3)).read_bytes() for n in range(2))
    assert one == other


def test_golden_bytes() -> None:
    """Bytes of format version 1. If this fails, the format changed: raise VERSION, do not edit the digests."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "format-1.json").read_text())
    row = {s.name: np.arange(np.prod(s.shape)).reshape(s.shape).astype(s.dtype) for s in SPECS}
    assert golden.keys() == row.keys() - {"thumbnail"}
    for spec in SPECS[:-1]:
        chunk = bytes.fromhex(golden[spec.name])
        np.testing.assert_array_equal(decode_chunk(spec, chunk), row[spec.name])
        assert spec.level or encode_chunk(spec, row[spec.name]) == chunk  # zstd's bytes may change with its version


def test_smaller_samples_are_padded_with_zeros() -> None:
    small = np.ones((2, 7), np.float32)
    whole = decode_chunk(SPECS[0], encode_chunk(SPECS[0], small))
    assert whole.shape == (5, 7) and (whole[:2] == 1).all() and (whole[2:] == 0).all()
    with pytest.raises(CodecError, match="features"):
        encode_chunk(SPECS[0], np.ones((6, 7), np.float32))
    with pytest.raises(CodecError, match="float64"):
        encode_chunk(SPECS[0], np.ones((5, 7)))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.lists(st.integers()))))
def test_canonical_json_is_stable(value: dict) -> None:
    again = json.loads(canonical(value))
    assert again == value and canonical(again) == canonical(value)


@pytest.mark.filterwarnings("ignore:The data type")
def test_a_cache_opens_in_place(of_version: dict[str, Path]) -> None:
    root = of_version["lossless"].parent / "cache"
    cache = Cache(root)
    for number in cache.passes():
        for n, shard in enumerate(cache.references(number)):
            path = root / f"pass-{number}" / f"shard-{n:05d}.tar"
            group = zarr.open_group(TarStore(path), mode="r")
            identities = [(ref.image_id, ref.view) for ref in shard]
            assert group.attrs["plan"] == cache.plan_digest
            reader = ShardReader(path)
            if reader.sidecar.version == 1:
                assert list(zip(group["index/image_id"][:], group["index/view"][:])) == identities
                np.testing.assert_array_equal(group["scores"][:].max(axis=2), group["frs"][:])
                continue
            assert list(map(tuple, group["index/record"][:, :2])) == identities
            for index, items in enumerate(group["samples"][:]):
                assert [bytes(item) for item in reader.chunks(index).values()] == list(items)
                arrays = reader.read(index)
                np.testing.assert_array_equal(arrays["scores"].max(axis=1), arrays["frs"])


@pytest.mark.parametrize("call", range(9))
def test_every_failing_call_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The n-th write or fsync of a shard fails, wherever it is: head, samples, tail, file, folder, sidecar."""
    left = itertools.count(-call)

    def failing(real: Any) -> Any:
        def run(*given: Any) -> Any:
            if next(left) == 0:
                raise OSError(errno.EIO, "Input/output error")
            return real(*given)

        return run

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(local.CountingWriter, "write", failing(local.CountingWriter.write))
    with pytest.raises(OSError) as caught:
        write_shard(tmp_path / "shard-00000.tar", random_rows(2))
    assert str(caught.value.filename).startswith(str(tmp_path / "shard-00000."))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_spawned_worker_opens_its_own_shards(made: dict[str, Path]) -> None:
    cache = Cache(made["frs"].parent / "cache")
    before = cache.shard(0, 0).read(0)
    travelled = pickle.dumps(cache)
    cache.shard(0, 0).close()
    after = pickle.loads(travelled).shard(0, 0).read(0)
    assert all(np.array_equal(before[name], after[name]) for name in before)
