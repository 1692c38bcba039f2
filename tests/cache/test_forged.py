"""Forged caches: every seal and checksum is right, yet nothing is allocated, opened or run that should not be."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tracemalloc
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google_crc32c import value as crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import Blosc

from pipeline.cache import tar
from pipeline.cache.arrays import encode_chunk
from pipeline.cache.cache import Cache
from pipeline.cache.canonical import canonical, digest, read_json, write_json
from pipeline.cache.items import encode_item, join_items
from pipeline.cache.reader import ShardReader
from pipeline.cache.schema import CODEC, MANIFEST, PASS_PLAN, PLAN, require_fields
from pipeline.cache.shard_index import encode_index
from pipeline.cache.sidecar import parse_sidecar
from pipeline.cache.version2 import shard_head
from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.map_codes import check_map
from pipeline.codecs.frs.order import ExpectedSizes, SymbolOrder
from pipeline.codecs.frs.tokens import check_tokens, to_tokens
from pipeline.codecs.group import load_codec
from pipeline.errors import CacheError, CorruptCache, PipelineError, StaleCache
from pipeline.integrity.verify import verify
from pipeline.storage.local import sha256_file

Members = list[tuple[str, bytes]]
GROUP = {"zarr_format": 3, "node_type": "group"}
WATCHED: list[tuple[str, Any]] = []
LISTENING = [False]
STARTS = ("subprocess", "os.system", "os.exec", "os.fork", "os.posix_spawn")
sys.addaudithook(lambda event, given: WATCHED.append((event, given)) if LISTENING[0] else None)


@pytest.fixture
def cache(of_version: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(of_version["frs"].parent / "cache", tmp_path / "cache"))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """Outside the test's folder and what Python itself reads no file is opened or made, and no process started."""
    WATCHED.clear()
    before = sorted(tmp_path.parent.iterdir())
    LISTENING[0] = True
    yield
    LISTENING[0] = False
    started = [event for event, _ in WATCHED if event.startswith(STARTS)]
    opened = [str(given[0]) for e, given in WATCHED if e == "open" and isinstance(given[0], str | Path)]
    foreign = [p for p in opened if "passwd" in p or "escaped" in p]
    assert not started and not foreign and sorted(tmp_path.parent.iterdir()) == before


def split(path: Path) -> list[Members]:
    """Head and samples of a shard, as members."""
    sidecar, raw = read_json(path.with_suffix(".json")), path.read_bytes()
    extents = [(sidecar["head"]["offset"], sidecar["head"]["size"]), *((row[0], row[1]) for row in sidecar["samples"])]
    return [[(n, bytes(d)) for n, d in tar.parse(raw[at : at + size])] for at, size in extents]


def forge(path: Path, parts: list[bytes]) -> None:
    """Write head and samples under a sidecar, manifest and seals that are right to the last digest."""
    sidecar, raw = read_json(path.with_suffix(".json")), b""
    for n, part in enumerate([*parts, tar.END]):
        at, size = len(raw), len(part)
        raw += part
        where: Any = ("head", *range(len(parts) - 1), "tail")[n]
        kind = "crc32c" if "crc32c" in sidecar["head"] else "sha256"
        checksum = crc32c(part) if kind == "crc32c" else sha256(part).hexdigest()
        if isinstance(where, int):
            sidecar["samples"][where][:3] = at, size, checksum
        else:
            sidecar[where].update({"offset": at, "size": size, kind: checksum})
    path.write_bytes(raw)
    write_json(path.with_suffix(".json"), {**sidecar, "size": len(raw), "sha256": sha256_file(path)})
    manifest = read_json(path.parent / "manifest.json")
    for file in (path, path.with_suffix(".json")):
        manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    write_json(path.parent / "manifest.json", manifest)


def joined(members: Members) -> bytes:
    return b"".join(tar.member(name, data) for name, data in members)


def version_of(path: Path) -> int:
    return ShardReader(path).sidecar.version


def forge_encoded(path: Path, name: str, payload: bytes) -> None:
    """Replace the bytes of an array of the first sample, compressed or not."""
    head, first, *rest = split(path)
    if version_of(path) == 1:
        chunks = dict(first)
        key = next(key for key in chunks if key.startswith(f"{name}/"))
        first = list({**chunks, key: payload + crc32c(payload).to_bytes(4, "little")}.items())
    else:
        items = {**{key: bytes(item) for key, item in ShardReader(path).chunks(0).items()}, name: payload}
        first = [("samples/0.0", join_items(list(items.values())))]
    forge(path, [joined(part) for part in (head, first, *rest)])


def forge_array(path: Path, name: str, value: np.ndarray) -> None:
    """Replace an array of the first sample. Version 2 has its record and thumbnail in the head."""
    opened: Any = ShardReader(path).head
    _, first, *rest = split(path)
    if version_of(path) == 1:
        (spec,) = (s for s in opened.specs if s.name == name)
        forge_encoded(path, name, encode_chunk(spec, value)[:-4])
    elif name in ("record", "thumbnail"):
        rows = {"record": opened.records.copy(), "thumbnail": opened.thumbnails.copy()}
        rows[name][0] = value
        index = encode_index(rows["record"], rows["thumbnail"])
        forge(path, [shard_head(opened.attributes, len(rest) + 1, index), joined(first), *map(joined, rest)])
    else:
        (item,) = (i for i in opened.items if i.name == name)
        forge_encoded(path, name, encode_item(item, value))


def read_first(root: Path) -> None:
    cache = Cache(root)
    codec = load_codec(root, cache.codec_manifest())
    cache.shard(0, 0).read(0, codec)


def refused(root: Path, match: str) -> None:
    """The forgery has right digests, and stage 2's reading refuses it with next to no memory."""
    verify(root)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCache, match=match):
            read_first(root)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def header(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


MEMBERS = {
    "symlink": header("features/c/0/0", tarfile.SYMTYPE, "/etc/passwd"),
    "hardlink": header("features/c/0/0", tarfile.LNKTYPE, "/etc/passwd"),
    "sparse": header("features/c/0/0", tarfile.GNUTYPE_SPARSE),
    "device": header("features/c/0/0", tarfile.CHRTYPE),
    "absolute": tar.member("/tmp/escaped", b"x"),
    "parent": tar.member("../../escaped", b"x"),
    "pickle": tar.member("0.pickle", b"cos\nsystem\n(S'touch escaped'\ntR."),
    "pax": header("././@PaxHeader", tarfile.XHDTYPE),
    "NUL in a name": header("x")[:1] + b"\0evil" + header("x")[5:],
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_are_no_chunks(cache: Path, alone: None, name: str) -> None:
    path = cache / "pass-0/shard-00000.tar"
    head, first, *rest = split(path)
    extra = MEMBERS[name]
    if name == "NUL in a name":  # a name that ends early for some readers; its checksum is right
        raw = bytearray(tar.header("x", 0))
        raw[1:6] = b"\0evil"
        raw[148:156] = b" " * 8
        raw[148:156] = b"%06o\0 " % sum(raw)
        extra = bytes(raw)
    forge(path, [joined(head), joined(first) + extra, *map(joined, rest)])
    refused(cache, "shard-00000.tar: sample 0 .*(not a plain file|tar members differ)")


def test_doubled_and_missing_members(cache: Path) -> None:
    path = cache / "pass-0/shard-00000.tar"
    head, first, *rest = split(path)
    for changed in ([*first, first[-1]], [*first[:-1], ("features/c/1/0", b"")], [*first[1:], ("samples/1.0", b"")]):
        forge(path, [joined(head), joined(changed), *map(joined, rest)])
        refused(cache, "sample 0 .*: its tar members differ")
    for changed in ([*head, head[-1]], head[:-1], [*head, ("evil/zarr.json", b"{}")]):
        forge(path, [joined(changed), joined(first), *map(joined, rest)])
        refused(cache, "invalid shard head")


ZEROS = Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE).encode(np.zeros(2**24, np.int32))
LENGTHS = [2**31 - 1, 2**27, -4, 0, 2**62, "9", 10.0, None]


@pytest.mark.parametrize("length", LENGTHS)
def test_huge_shapes_are_refused_before_anything_is_allocated(cache: Path, length: Any) -> None:
    """A few kB that decompress to hundreds of MB, and a zarr.json that says so."""
    path = cache / "pass-0/shard-00000.tar"
    assert len(ZEROS) < 1e5
    bomb = ZEROS[:4] + (4 * 2**27 if length == 2**27 else 2**26).to_bytes(4, "little") + ZEROS[8:]
    forge_encoded(path, "features", bomb)
    head, *samples = split(path)
    name = "features/zarr.json" if version_of(path) == 1 else "index/record/zarr.json"
    meta = json.loads(dict(head)[name])
    meta["shape"][1] = meta["chunk_grid"]["configuration"]["chunk_shape"][1] = length
    forge(path, [joined(list({**dict(head), name: canonical(meta)}.items())), *map(joined, samples)])
    refused(cache, "invalid shard head|declares|invalid zarr.json")


def test_a_bomb_in_a_chunk(cache: Path) -> None:
    path = cache / "pass-0/shard-00000.tar"
    declared = int.from_bytes(ShardReader(path).chunks(0)["features"][4:8], "little")
    for bomb in (ZEROS, ZEROS[:4] + declared.to_bytes(4, "little") + ZEROS[8:]):
        forge_encoded(path, "features", bomb)
        refused(cache, "sample 0 .*(declares|decompress|token)")


def test_a_bomb_in_the_index(made: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache")) / "pass-0/shard-00000.tar"
    head, *samples = split(path)
    for name in ("index/record/0.0", "index/thumbnail/0.0.0.0"):
        declared = dict(head)[name][4:8]
        for bomb in (ZEROS, ZEROS[:4] + declared + ZEROS[8:]):
            chunk = bomb + crc32c(bomb).to_bytes(4, "little")
            forge(path, [joined(list({**dict(head), name: chunk}.items())), *map(joined, samples)])
            refused(tmp_path / "cache", "array index/.*: (declares|cannot be decompressed)")


CHANGES: list[dict[str, Any]] = [
    *({"levels": value} for value in (2**20, -1, 0, True, None, 65)),
    *({"arrays": value} for value in ([], [{}], ["features"], None)),
    {"codec": {"channels": 2**40, "score_channels": 1}},
    {"codec": {"channels": -1, "score_channels": 1}},
]


@pytest.mark.parametrize("change", CHANGES)
def test_attributes_that_lie(made: dict[str, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    """A head that is canonical for these attributes, where one can be made of them."""
    path = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache")) / "pass-0/shard-00000.tar"
    opened: Any = ShardReader(path).head
    attributes = {**opened.attributes, **change}
    files = {**dict(split(path)[0]), "zarr.json": canonical({**GROUP, "attributes": attributes})}
    if "arrays" in change and isinstance(change["arrays"], list):
        meta = json.loads(files["samples/zarr.json"])
        meta["shape"][1] = meta["chunk_grid"]["configuration"]["chunk_shape"][1] = len(change["arrays"])
        files["samples/zarr.json"] = canonical(meta)
    forge(path, [joined(list(files.items())), *map(joined, split(path)[1:])])
    refused(tmp_path / "cache", "invalid shard head|does not consist of|made for another")


def items_of(path: Path) -> list[bytes]:
    return [bytes(item) for item in ShardReader(path).chunks(0).values()]


@pytest.mark.parametrize("kind", ["frs", "lossless"])
def test_items_of_another_size(made: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Each item has the one size that the sample's own grids give it; tokens at most one for each symbol."""
    path = Path(shutil.copytree(made[kind].parent / "cache", tmp_path / "cache")) / "pass-0/shard-00000.tar"
    arrays, opened = ShardReader(path).read(0), ShardReader(path)
    (codec,) = [load_codec(tmp_path / "cache", read_json(tmp_path / "cache/codec.json"))]
    limits = codec.size_limits(opened.levels(0))
    for item in codec.items():
        array = arrays[item.name]
        least, most = limits[item.name]
        row = array.nbytes // len(array)
        longer = np.resize(array, (most // row + 1, *array.shape[1:]))
        changed = [longer] if least < most else [longer, array[:-1], array[:0]]
        for value in changed:
            forge_array(path, item.name, np.ascontiguousarray(value))
            refused(tmp_path / "cache", f"sample 0 .*array {item.name}: (declares|expected)")
        forge_array(path, item.name, array)


def test_lengths_that_do_not_fill_the_chunk(made: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache")) / "pass-0/shard-00000.tar"
    head, _, *rest = split(path)
    items = items_of(path)
    payload = join_items(items)[:-4]
    lies = [payload + b"\0", payload[:-1], b"\4" + payload[1:], b"\2" + payload[1:], payload[:4], b"", payload[:3]]
    lies += [payload[:4] + (2**31).to_bytes(4, "little") + payload[8:], join_items(items[:-1])[:-4]]
    for lie in lies:
        chunk = lie + crc32c(lie).to_bytes(4, "little")
        forge(path, [joined(head), joined([("samples/0.0", chunk)]), *map(joined, rest)])
        refused(tmp_path / "cache", "sample 0 .*(does not consist of 3 items|checksum mismatch)")
    forge(path, [joined(head), joined([("samples/0.0", payload + bytes(4))]), *map(joined, rest)])
    refused(tmp_path / "cache", "sample 0 .*checksum mismatch")


def test_a_shard_of_the_other_version(made: dict[str, Path], made_1: dict[str, Path], tmp_path: Path) -> None:
    """A whole shard with weaker checksums, or a sidecar of them, in a cache of version 2."""
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    path, other = root / "pass-0/shard-00000.tar", made_1["frs"].parent / "cache/pass-0/shard-00000.tar"
    sidecar = read_json(other.with_suffix(".json"))
    sidecar |= {key: Cache(root).shard(0, 0).sidecar.to_json()[key] for key in ("plan", "codec")}
    shutil.copy(other, path)
    write_json(path.with_suffix(".json"), sidecar)
    forge(path, [joined(part) for part in split(path)])
    with pytest.raises(StaleCache, match="expected a shard of format version 2, found 1"):
        read_first(root)


def test_a_record_that_lies(cache: Path) -> None:
    path = cache / "pass-0/shard-00000.tar"
    record, whole = ShardReader(path).read(0)["record"], list(map(joined, split(path)))
    for column, value in ((0, 7), (1, 1 - record[1]), (6, 1), (8, 4), (8, -1), (11, 2**40), (12, -1), (2, 0)):
        lie = record.copy()
        lie[column] = value
        forge_array(path, "record", lie)
        refused(cache, "sample 0 .*its record belongs to another sample|invalid shard head")
        forge(path, whole)


def test_grids_that_need_too_much_memory(cache: Path) -> None:
    """Grids a thousand times larger, in every place that has them, and the bomb that would fill them."""
    path = cache / "pass-0/shard-00000.tar"
    record = ShardReader(path).read(0)["record"].copy()
    record[11:] *= 1000
    forge_encoded(path, "features", ZEROS)
    forge_array(path, "record", record)
    refused(cache, "sample 0 .*its record belongs to another sample|invalid shard head")


def test_tokens_that_reach_too_far(cache: Path) -> None:
    path = cache / "pass-0/shard-00000.tar"
    tokens = ShardReader(path).read(0)["features"]
    for hostile in (np.full_like(tokens, 255), np.full_like(tokens, 2**31 - 1), np.full_like(tokens, -1)):
        forge_array(path, "features", hostile)
        refused(cache, "sample 0 .*array features: .*(reach symbol|invalid token)")


def test_tables_of_any_size(cache: Path) -> None:
    """zarr makes up what is not there, and runs what a zarr.json names."""
    path = cache / "codec/feature_mean/zarr.json"
    whole, manifest = json.loads(path.read_bytes()), read_json(cache / "codec.json")

    def forged(meta: dict[str, Any]) -> None:
        path.write_text(json.dumps(meta))
        manifest["files"]["feature_mean/zarr.json"] = sha256_file(path)
        write_json(cache / "codec.json", manifest)
        tracemalloc.start()
        try:
            with pytest.raises(CorruptCache, match="codec: cannot be opened"):
                load_codec(cache, Cache(cache).codec_manifest())
            assert tracemalloc.get_traced_memory()[1] < 8e6
        finally:
            tracemalloc.stop()

    huge = [2**20, *whole["shape"][1:]]
    grid = {"name": "regular", "configuration": {"chunk_shape": huge}}
    forged({**whole, "shape": huge})
    forged({**whole, "shape": huge, "chunk_grid": grid})
    forged({**whole, "codecs": [{"name": "numcodecs.pickle"}]})
    forged({**whole, "codecs": [*whole["codecs"], {"name": "gzip"}]})
    forged({**whole, "data_type": "object"})
    forged({**whole, "shape": [-1, *whole["shape"][1:]]})


def test_names_that_lead_elsewhere(cache: Path, alone: None) -> None:
    manifest = read_json(cache / "pass-0/manifest.json")
    for name in ("../../../etc/passwd", "/etc/passwd", "shard-00000.tar\0", "shard-1.tar", "plan.json/../x"):
        files = {**manifest["files"], name: {"bytes": 1, "sha256": "0" * 64}}
        write_json(cache / "pass-0/manifest.json", {**manifest, "files": files})
        with pytest.raises(CorruptCache, match="field files"):
            verify(cache)
    write_json(cache / "pass-0/manifest.json", manifest)
    codec = read_json(cache / "codec.json")
    write_json(cache / "codec.json", {**codec, "files": {**codec["files"], "../../etc/passwd": "0" * 64}})
    with pytest.raises(CacheError):
        verify(cache)


@pytest.mark.parametrize("root", ["pipe:touch escaped", "pipe:cat /etc/passwd |", "a\0b", "|touch escaped"])
def test_a_url_runs_nothing(alone: None, root: str) -> None:
    with pytest.raises(CacheError, match="no cache here"):
        Cache(root)


def test_a_name_with_a_line_break_stays_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CorruptCache) as schema:
        require_fields({"sizes": {"a\nb": None}}, {"sizes": {str: int}}, tmp_path / "manifest.json")
    assert "\n" not in str(schema.value) and "field sizes.a b is" in str(schema.value)
    with pytest.raises(CorruptCache) as sidecar:
        parse_sidecar({"head": {"\n": None}, "tail": {}, "samples": []}, tmp_path / "shard-00000.json")
    assert "\n" not in str(sidecar.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "name, change",
    [
        ("plan.json", {"recipe.teacher": {}}),
        ("plan.json", {"recipe.views": {}}),
        ("plan.json", {"recipe.views": None}),
        ("codec.json", {"settings.probe_error": {}}),
        ("codec.json", {"settings.probe_error": 5}),
        ("codec.json", {"settings.probe_error": {"feature": 0.1, "score": 0.1, "cwd": "0.1"}}),
        ("codec.json", {"settings.feature_rank": "8"}),
    ],
)
def test_what_info_tells_is_there(cache: Path, name: str, change: dict[str, Any]) -> None:
    value = read_json(cache / name)
    for key, new in change.items():
        section, field = key.split(".")
        value[section][field] = new
    write_json(cache / name, value)
    with pytest.raises(CorruptCache, match=f"{name}: field .* is missing or invalid"):
        Cache(cache)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_in_any_field(of_version: dict[str, Path], data: st.DataObject) -> None:
    """Whatever stands in a small file: it is refused in one line, or is what the format says."""
    root = of_version["frs"].parent / "cache"
    names = {
        "plan.json": PLAN,
        "codec.json": CODEC,
        "pass-0/plan.json": PASS_PLAN,
        "pass-0/manifest.json": MANIFEST,
        "pass-0/shard-00000.json": None,
    }
    name = data.draw(st.sampled_from(sorted(names)))
    value = at = json.loads(json.dumps(read_json(root / name)))
    while True:
        keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    before = at[key]
    at[key] = data.draw(JSON)
    try:
        if names[name] is None:
            parse_sidecar(value, root / name)
        else:
            require_fields(value, names[name], root / name)
    except PipelineError as error:
        assert "\n" not in str(error) and str(root / name) in str(error)
    else:
        same = type(before) is type(at[key]) or isinstance(before, float)
        assert same or name in ("plan.json", "codec.json"), "recipe and settings are open, all else is not"


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.data())
def test_tokens_are_refused_or_mean_something(symbols: int, seed: int, data: st.DataObject) -> None:
    """What the encoder writes passes; any other int32 row passes only if it decodes inside the sample."""
    import torch

    rng = np.random.default_rng(seed)
    blocks = -(-symbols // 16)
    shape = (1, 1, 4, 4 * blocks)
    q = torch.from_numpy(rng.integers(-3, 4, shape) * (rng.random(shape) < 0.3)).float()
    expected = ExpectedSizes.from_table(np.zeros((1, 1, 16), np.int16), torch.device("cpu"))
    maps = BatchMaps.encode([torch.ones((1, *shape[2:]))], 99)
    (row,) = to_tokens([q], SymbolOrder(expected, maps.strengths))
    tokens = row.numpy()
    check_tokens(tokens, 16 * blocks)
    numbers = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 255, 256, 511])
    row = np.array(data.draw(st.lists(numbers, max_size=8)), np.int64).astype(np.int32)
    inside = bool((row >= 255).all()) and int(((row.astype(np.int64) & 255) + 1).sum()) <= symbols
    if inside:
        check_tokens(row, symbols)
    else:
        with pytest.raises(CorruptCache):
            check_tokens(row, symbols)


def test_maps_that_no_encoder_writes() -> None:
    row = np.array([3, 255, 0, 0, 0, 0, 0], np.uint8)
    check_map(row, ((2, 2), (1, 1)))
    for bad in (row[:-1], row.astype(np.int16), row[None], np.array([121, 255, 0, 0, 0, 0, 0], np.uint8)):
        with pytest.raises(CorruptCache):
            check_map(bad, ((2, 2), (1, 1)))


def test_a_seal_is_no_signature(cache: Path) -> None:
    """What is not promised: whoever may write the folder can write another cache. It has another content digest."""
    path = cache / "pass-0/shard-00000.tar"
    before = Cache(cache).content()
    forge_array(path, "thumbnail", np.zeros((8, 8, 3), np.uint8))
    verify(cache)
    assert Cache(cache).content() != before and digest({}) != digest({"a": 1})
