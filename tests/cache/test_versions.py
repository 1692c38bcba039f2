"""Both format versions hold the same arrays. Version 2 is what zarr writes, costs little, and `content` covers it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import canonical, digest, read_json, write_json
from pipeline.cache.inspect import count_views
from pipeline.cache.reader import ShardReader
from pipeline.cache.shard_index import encode_index
from pipeline.cache.shard_plan import view_of
from pipeline.cache.sidecar import EXTENTS
from pipeline.cache.version2 import parse_head
from pipeline.cache.zarr_store import TarStore
from pipeline.errors import CorruptCache, PipelineError
from pipeline.integrity.verify import verify
from pipeline.records import THUMBNAIL
from pipeline.storage.local import sha256_file
from tests.helpers.mixed_cache import codec_of, make_mixed


@pytest.mark.parametrize("settings", [{}, {"profile": "universal"}, {"scores": False}, {"type": "lossless"}])
def test_both_versions_hold_the_same_arrays(tmp_path: Path, settings: dict[str, Any]) -> None:
    roots = [make_mixed(tmp_path / f"{version}", settings, version) for version in (1, 2)]
    first, second = (ShardReader(root / "pass-0/shard-00000.tar") for root in roots)
    assert (first.sidecar.version, second.sidecar.version) == (1, 2) and len(first) == len(second) == 5
    for index in range(len(first)):
        one, two = (reader.read(index, codec_of(root)) for reader, root in zip((first, second), roots))
        assert one.keys() == two.keys() and first.levels(index) == second.levels(index)
        for name, array in one.items():
            np.testing.assert_array_equal(array, two[name])
            assert array.dtype == two[name].dtype


@pytest.mark.filterwarnings("ignore:The data type")
def test_zarr_writes_the_same_head(tmp_path: Path) -> None:
    """The metadata and the index chunks are zarr-python's, apart from the order of keys."""
    root = make_mixed(tmp_path / "cache", {})
    reader = ShardReader(root / "pass-0/shard-00000.tar")
    files, head = reader.head_files(), parse_head(bytes(reader._head_bytes), len(reader))
    keys: Any = {"name": "v2", "separator": "."}
    group = zarr.create_group(tmp_path / "zarr", zarr_format=3, attributes=head.attributes)
    group.create_array(
        "samples",
        shape=(len(reader), len(head.items)),
        chunks=(1, len(head.items)),
        dtype="variable_length_bytes",
        compressors=[Crc32cCodec()],
        chunk_key_encoding=keys,
        dimension_names=["sample", "array"],
    )
    index = group.create_group("index")
    sides = {"record": (head.records, ["field"]), "thumbnail": (head.thumbnails, ["row", "column", "bgr"])}
    for name, (rows, dims) in sides.items():
        array = index.create_array(
            name,
            shape=rows.shape,
            chunks=rows.shape,
            dtype=rows.dtype,
            compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"), Crc32cCodec()],
            chunk_key_encoding=keys,
            dimension_names=["sample", *dims],
        )
        array[:] = rows
    written = {p.relative_to(tmp_path / "zarr").as_posix(): p for p in (tmp_path / "zarr").rglob("*") if p.is_file()}
    assert written.keys() == files.keys()
    for name, path in written.items():
        found = path.read_bytes()
        if name.endswith("zarr.json"):
            assert {"attributes": {}, **json.loads(found)} == json.loads(files[name]), name
        else:
            assert found == files[name], name


def test_the_overhead_of_a_sample_is_small(made: dict[str, Path]) -> None:
    """Tar header and padding, lengths, record, thumbnail, row of the sidecar: at most 1.5 kB, in shards of any size."""
    root = made["frs"].parent / "cache"
    for number in Cache(root).passes():
        for path in (root / f"pass-{number}").glob("shard-*.tar"):
            reader = ShardReader(path)
            items = sum(len(chunk) for n in range(len(reader)) for chunk in reader.chunks(n).values())
            rows = len(canonical(read_json(path.with_suffix(".json"))["samples"]))
            index = sum(reader.sidecar.bytes_by_array[name] for name in ("record", "thumbnail"))
            extents = sum(extent.size for extent in reader.sidecar.samples)
            assert (extents - items + index + rows) / len(reader) < 1500


def test_records_of_many_samples_take_few_bytes() -> None:
    rng = np.random.default_rng(0)
    records = np.zeros((256, 21), np.int64)
    records[:, 0], records[:, 9:11] = rng.integers(1, 10**6, 256), rng.integers(0, 2**32, (256, 2))
    records[:, 2:] += rng.integers(100, 1333, 19)
    index = encode_index(records, rng.integers(0, 256, (256, THUMBNAIL, THUMBNAIL, 3)).astype(np.uint8))
    assert sum(map(len, index.values())) / 256 < 192 + 40


@pytest.mark.filterwarnings("ignore:The data type")
def test_a_missing_sample_is_an_error_in_place(tmp_path: Path) -> None:
    """zarr would read the chunk as empty byte strings."""
    path = make_mixed(tmp_path, {}) / "pass-0/shard-00000.tar"
    extent, raw = ShardReader(path).sidecar.samples[1], path.read_bytes()
    path.write_bytes(raw[: extent.offset] + raw[extent.offset + extent.size :])
    group: Any = zarr.open_group(TarStore(path), mode="r")
    assert any(group["samples"][0]) and any(group["samples"][2])
    with pytest.raises(CorruptCache, match=r"no chunk samples/1\.0"):
        group["samples"][1]


def seal(path: Path, value: dict[str, Any]) -> None:
    value.pop("seal", None)
    write_json(path, value)


def reseal(root: Path, path: Path) -> None:
    """Make every checksum above a changed file right again, as a forger would."""
    folder = path.parent
    if path.suffix == ".tar":
        sidecar, data = read_json(path.with_suffix(".json")), path.read_bytes()
        for extent in (sidecar["head"], sidecar["tail"]):
            extent["sha256"] = EXTENTS[2].of(0, data[extent["offset"] :][: extent["size"]]).sha256  # type: ignore[union-attr]
        for row in sidecar["samples"]:
            row[2] = EXTENTS[2].of(0, data[row[0] :][: row[1]]).sha256  # type: ignore[union-attr]
        seal(path.with_suffix(".json"), {**sidecar, "size": len(data), "sha256": sha256_file(path)})
        reseal(root, path.with_suffix(".json"))
    elif folder.name.startswith("pass-") and path.name != "manifest.json":
        manifest = read_json(folder / "manifest.json")
        for name in (path.name, path.with_suffix(".tar").name):
            if name in manifest["files"]:
                size = (folder / name).stat().st_size
                manifest["files"][name] = {"bytes": size, "sha256": sha256_file(folder / name)}
        seal(folder / "manifest.json", manifest)
    elif root / "codec" in path.parents:
        codec = read_json(root / "codec.json")
        codec["files"][path.relative_to(root / "codec").as_posix()] = sha256_file(path)
        seal(root / "codec.json", codec)


def alterations(path: Path) -> list[Callable[[], None]]:
    """Changes of a file: of one byte at several places, or of a JSON value and its seal."""
    raw = path.read_bytes()
    if path.suffix == ".json" and path.parent.name != "codec" and "codec" not in path.parent.parts[-2:]:

        def change(key: str) -> None:
            value = json.loads(raw)
            value[key] = value[key] + 1 if type(value[key]) in (int, float) else [*value.get(key, ()), "x"]
            seal(path, value)

        return [lambda key=key: change(key) for key in sorted(json.loads(raw).keys() - {"seal"})] + [
            lambda: seal(path, {**json.loads(raw), "more": 1})
        ]

    def flip(at: int) -> None:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])

    places = sorted({0, len(raw) - 1, *range(0, len(raw), max(1, len(raw) // 40))})
    return [lambda at=at: flip(at) for at in places]


def test_content_covers_every_file(made: dict[str, Path], tmp_path: Path) -> None:
    """Each file in turn is altered and every checksum above it made right: `content` changes, or nothing opens."""
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    quarantine = {"images": [[7, "unreadable"]]}
    write_json(root / "pass-1/quarantine.json", quarantine)
    manifest = read_json(root / "pass-1/manifest.json")
    entry = {
        "bytes": (root / "pass-1/quarantine.json").stat().st_size,
        "sha256": sha256_file(root / "pass-1/quarantine.json"),
    }
    files = {**manifest["files"], "quarantine.json": entry}
    write_json(root / "pass-1/manifest.json", {**manifest, "quarantine": quarantine["images"], "files": files})
    verify(root)
    contents, ignored = {Cache(root).content()}, ("summary.json", ".lock")
    names = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in ignored)
    assert {path.name for path in names} >= {"gate.json", "plan.json", "codec.json", "quarantine.json", "manifest.json"}
    opened = 0
    for path in names:
        whole = {other: other.read_bytes() for other in names}
        for alter in alterations(path):
            alter()
            reseal(root, path)
            try:
                found = Cache(root).content()
            except PipelineError:
                pass
            else:
                assert found not in contents, path
                contents.add(found)
                opened += 1
            for other, raw in whole.items():
                other.write_bytes(raw)
    assert opened > 200 and Cache(root).content() in contents


def test_content_is_a_tree(made: dict[str, Path]) -> None:
    cache = Cache(made["frs"].parent / "cache")

    def seal_of(name: str) -> str:
        return json.loads((cache.root / name).read_bytes())["seal"]

    same = {name: seal_of(f"{name}.json") for name in ("plan", "codec", "gate")}
    passes = {str(n): seal_of(f"pass-{n}/manifest.json") for n in cache.passes()}
    assert cache.content() == digest({**same, "passes": passes})
    assert cache.pass_contents() == {n: digest({**same, "passes": {n: passes[n]}}) for n in passes}


def test_codec_json_names_the_calibration_views(made: dict[str, Path], made_1: dict[str, Path]) -> None:
    """Version 1 has only their numbers."""
    old, new = (Cache(configs["frs"].parent / "cache").codec_measured for configs in (made_1, made))
    images = {(image_id, view_of(image_id, 0, 2)) for image_id in Cache(made["frs"].parent / "cache").images()}
    parts = {part: [tuple(view) for view in new[part]] for part in ("learning", "choosing", "reported")}
    assert {part: len(views) for part, views in parts.items()} == {
        "learning": old["views"],
        "choosing": old["choosing"],
        "reported": old["reported"],
    }
    listed = [view for views in parts.values() for view in views]
    assert len(set(listed)) == len(listed) and set(listed) <= images
    assert count_views(new) == {part: len(views) for part, views in parts.items()} and count_views(old) == {
        "views": old["views"],
        "choosing": old["choosing"],
        "reported": old["reported"],
    }
