"""A sample's items: zarr-python reads and writes the same bytes; a size is checked before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from google_crc32c import value as crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec

from pipeline.cache.items import Item, decode_item, encode_item, item_from_json, join_items, split_items
from pipeline.errors import CodecError, CorruptCache
from tests.helpers.outputs import calibrated_codec, random_output

TOKENS = Item("features", "int32", 8, ("token",))
ROWS = Item("features", "float32", 1, ("position", "channel"))
RAW = Item("frs", "uint8", None, ("byte",))
ANY = (0, 2**31)


def sealed(payload: bytes) -> memoryview:
    return memoryview(payload + crc32c(payload).to_bytes(4, "little"))


@pytest.mark.filterwarnings("ignore:The data type")
def test_zarr_reads_and_writes_the_same_chunks(tmp_path: Path) -> None:
    rows = [[b"", b"abc", bytes(1000)], [b"\0", b"", b"x" * 7]]
    array = zarr.create_array(
        tmp_path / "a",
        shape=(2, 3),
        chunks=(1, 3),
        dtype="variable_length_bytes",
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "v2", "separator": "."},
    )
    array[:] = np.array(rows, object)
    for n, row in enumerate(rows):
        assert (tmp_path / "a" / f"{n}.0").read_bytes() == join_items(row)
        assert [bytes(item) for item in split_items(memoryview(join_items(row)), 3)] == row
        (tmp_path / "a" / f"{n}.0").write_bytes(join_items(row[::-1]))
    assert [list(row) for row in zarr.open_array(tmp_path / "a", mode="r")[:]] == [row[::-1] for row in rows]


@pytest.mark.parametrize("kind", ["frs", "lossless"])
@pytest.mark.parametrize("scores", [True, False])
def test_a_codec_lists_the_arrays_that_it_makes(kind: str, scores: bool) -> None:
    codec = calibrated_codec(kind, **({} if scores else {"scores": False}))
    output = random_output(1, [(5, 9), (3, 5)], 8, 6)

    (sample,), _ = codec.encode(output)

    limits = codec.size_limits(output.levels)
    assert {item.name for item in codec.items()} == sample.keys() == limits.keys()
    for item in codec.items():
        array = sample[item.name]
        assert (array.dtype.name, array.ndim) == (item.dtype, len(item.dims)) and item_from_json(item.to_json())
        assert limits[item.name][0] <= array.nbytes <= limits[item.name][1]
        found = decode_item(item, encode_item(item, array), limits[item.name], 5 * 9 + 3 * 5)
        np.testing.assert_array_equal(found, array)
        assert found.shape == array.shape


@pytest.mark.parametrize("item", [TOKENS, ROWS, RAW])
@pytest.mark.parametrize("rows", [0, 1, 6])
def test_each_sample_has_its_own_length(item: Item, rows: int) -> None:
    shape = (6, rows) if len(item.dims) == 2 else (rows,)
    array = np.arange(np.prod(shape)).reshape(shape).astype(item.dtype)

    data = encode_item(item, array)

    assert bool(data) == bool(array.size)
    np.testing.assert_array_equal(decode_item(item, data, (array.nbytes, array.nbytes), 6), array)
    for limits in ((array.nbytes + 1, 10**6), (0, array.nbytes - 1)):
        with pytest.raises(CorruptCache, match=f"array {item.name}: declares {array.nbytes} bytes"):
            decode_item(item, data, limits, 6)


def test_an_array_of_another_kind_is_not_encoded() -> None:
    for item, array in ((TOKENS, np.zeros(3)), (TOKENS, np.zeros((3, 1), np.int32)), (ROWS, np.zeros(3, np.float32))):
        with pytest.raises(CodecError, match="array features: expected"):
            encode_item(item, array)


def test_blosc_headers_that_lie() -> None:
    data = encode_item(TOKENS, np.arange(300, dtype=np.int32))
    lies = [data[:15], data + b"x", data[:-1], data[:4] + bytes(4) + data[8:], data[:16]]
    lies += [data[:4] + (1204).to_bytes(4, "little") + data[8:], data[:20] + bytes([data[20] ^ 255]) + data[21:]]
    for lie in lies:
        with pytest.raises(CorruptCache, match="array features"):
            decode_item(TOKENS, lie, ANY, 1)
    with pytest.raises(CorruptCache, match=r"declares 1200 bytes, expected 0 to .*, in multiples of 28"):
        decode_item(ROWS, data, ANY, 7)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=4), st.integers(0, 5), st.data())
def test_lengths_must_fill_the_chunk_exactly(items: list[bytes], count: int, data: st.DataObject) -> None:
    chunk = join_items(items)
    payload = bytearray(chunk[:-4])
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(0, 255))
    payload += data.draw(st.binary(max_size=4))
    for raw in (memoryview(chunk), sealed(bytes(payload)), sealed(bytes(payload[: data.draw(st.integers(0, 9))]))):
        try:
            found = [bytes(item) for item in split_items(raw, count)]
        except CorruptCache:
            assert raw != chunk or count != len(items)
        else:
            assert join_items(found) == raw and len(found) == count
    with pytest.raises(CorruptCache, match="checksum"):
        split_items(memoryview(chunk[:-1] + bytes([chunk[-1] ^ 1])), len(items))


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float64"}, {"dtype": 3}, {"compression": "zip"}, {"dims": []}, {"dims": ["a", "b", "c"]}]
    + [{"name": ""}, {"name": None}, {"more": 1}, {"dims": "token"}],
)
def test_items_that_no_shard_lists(change: dict) -> None:
    with pytest.raises((ValueError, TypeError)):
        item_from_json({**TOKENS.to_json(), **change})
