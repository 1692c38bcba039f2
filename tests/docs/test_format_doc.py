"""docs/format.md is true: its code blocks run as they stand and agree with this project's own reading."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import read_json
from pipeline.cache.reader import ShardReader
from pipeline.cache.shard_plan import ShardPlan, mix
from pipeline.codecs.frs.settings import PROFILES
from tests.helpers.mixed_cache import GRIDS, PlannedTeacher, codec_of, decoded, make_mixed
from tests.helpers.paths import ROOT
from tests.helpers.related import short_training
from tests.helpers.stages import stage1
from tests.helpers.wide_heads import keep_few_directions

DOC = ROOT / "docs" / "format.md"
SHARD = "cache/pass-0/shard-00000.tar"  # as the blocks name it
NAMES = ("digests", "mix", "check", "arrays", "stream", "unpack", "open", "in_place", "decode", "open_1", "stream_1")

# zarr says of each `variable_length_bytes` that its specification is not final
pytestmark = pytest.mark.filterwarnings("ignore:The data type")


def blocks() -> dict[str, str]:
    found = re.findall(r"<!-- test: (\w+) -->\n```\w+\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert [name for name, _ in found] == list(NAMES)
    return dict(found)


def run(name: str, shard: str = SHARD, **given: Any) -> dict[str, Any]:
    """Execute a block of the page in the current folder, on another shard if asked to. Returns its names."""
    namespace = dict(given)
    exec(compile(blocks()[name].replace(SHARD, shard), f"{DOC.name}:{name}", "exec"), namespace)
    return namespace


def version_of(shard: str) -> int:
    return ShardReader(Path(shard)).sidecar.version


def unpack(shard: str = SHARD) -> dict[str, Any]:
    """Way (b) of the page: a folder `out`, opened."""
    shutil.rmtree("out", ignore_errors=True)
    subprocess.run(["sh", "-euc", blocks()["unpack"].replace(SHARD, shard)], check=True)
    return run("open_1") if version_of(shard) == 1 else run("open", to_arrays=to_arrays())


def to_arrays() -> Any:
    return run("arrays")["to_arrays"]


def streamed(shards: list[str]) -> list[dict[str, np.ndarray]]:
    """Way (a) of the page."""
    if version_of(shards[0]) == 1:
        return list(run("stream_1")["stream"](shards))
    return list(run("stream", **run("arrays"))["stream"](shards))


def arrays_of(group: Any) -> list[dict[str, np.ndarray]]:
    """The arrays of every sample of an opened shard."""
    if "samples" not in group:
        return [{n: group[n][i] for n in group.attrs["arrays"]} for i in range(group["record"].shape[0])]
    convert = to_arrays()
    return [convert(group["samples"][i], row, group.attrs) for i, row in enumerate(group["index/record"][:])]


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds: dict[str, dict[str, Any]] = {profile: {"profile": profile} for profile in PROFILES}
    kinds["no scores"], kinds["lossless, no scores"] = {"scores": False}, {"type": "lossless", "scores": False}
    found = {
        f"{name} {version}": make_mixed(tmp_path_factory.mktemp("mixed"), settings, version)
        for name, settings in kinds.items()
        for version in (1, 2)
    }
    with short_training():
        found["frs2 2"] = make_mixed(tmp_path_factory.mktemp("mixed"), {"type": "frs2"})
    with pytest.MonkeyPatch.context() as patch:
        keep_few_directions(patch, 4)
        found["wide 2"] = make_mixed(tmp_path_factory.mktemp("mixed"), {})
    return found


CACHES = ["made frs", "made lossless", "made_1 lossless"]
CACHES += ["mixed frs 2", "mixed universal 2", "mixed frs2 2", "mixed no scores 2", "mixed lossless, no scores 2"]
CACHES += ["mixed wide 2"]
CACHES += ["mixed frs 1", "mixed universal 1", "mixed lossless, no scores 1"]


@pytest.fixture(params=CACHES)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's `cache` folder, beside which its blocks run."""
    fixture, _, name = request.param.partition(" ")
    found = request.getfixturevalue(fixture)[name]
    (tmp_path / "cache").symlink_to(found if fixture == "mixed" else found.parent / "cache")
    monkeypatch.chdir(tmp_path)
    return Path("cache")


def shards(cache: Path) -> list[str]:
    found = sorted(str(path) for path in cache.glob("pass-*/shard-*.tar"))
    assert found
    return found


def test_three_readers_agree(cache: Path) -> None:
    for shard in shards(cache):
        unpacked = arrays_of(unpack(shard)["group"])
        in_place = unpacked
        if version_of(shard) > 1:
            in_place = arrays_of(run("in_place", shard, to_arrays=to_arrays())["group"])
        reader, samples = ShardReader(Path(shard)), streamed([shard])
        assert len(samples) == len(unpacked) == len(reader) > 0
        for index, sample in enumerate(samples):
            expected = reader.read(index)
            for found in (sample, unpacked[index], in_place[index]):
                names = found.keys() | {"thumbnail"}  # version 2 has thumbnails in the head alone
                assert names == expected.keys()
                for name, array in found.items():
                    assert array.dtype == expected[name].dtype and array.shape == expected[name].shape
                    assert np.array_equal(array, expected[name]), (shard, index, name)


def test_streaming_several_shards_loses_nothing(cache: Path) -> None:
    found = sorted(tuple(int(n) for n in sample["record"][:2]) for sample in streamed(shards(cache)))
    readers = [ShardReader(Path(shard)) for shard in shards(cache)]
    assert found == sorted((s.image_id, s.view) for reader in readers for s in reader.sidecar.samples)


def test_streaming_refuses_a_flipped_chunk(cache: Path, tmp_path: Path) -> None:
    shard = Path(shards(cache)[0])
    data = bytearray(shard.read_bytes())
    extent = ShardReader(shard).sidecar.samples[0]
    data[extent.offset + 512 + 20] ^= 4  # in the first chunk, past its tar header
    (tmp_path / "flipped.tar").write_bytes(data)
    shutil.copy(shard.with_suffix(".json"), tmp_path / "flipped.json")
    stream = run("stream_1") if version_of(str(shard)) == 1 else run("stream", **run("arrays"))
    with pytest.raises(RuntimeError, match="checksum"):
        list(stream["stream"]([str(tmp_path / "flipped.tar")]))


def test_an_item_that_declares_too_much_is_not_decompressed(mixed: dict[str, Path]) -> None:
    reader = ShardReader(mixed["frs 2"] / "pass-0" / "shard-00000.tar")
    items = [bytes(item) for item in reader.chunks(0).values()]
    items[0] = items[0][:4] + (2**30).to_bytes(4, "little") + items[0][8:]
    with pytest.raises(ValueError, match="declares"):
        to_arrays()(items, reader.read(0)["record"], reader.attributes)


@pytest.mark.parametrize("cache", [name for name in CACHES if "frs2" not in name], indirect=True)
def test_numpy_decodes_as_the_codec_does(cache: Path) -> None:
    """The page leaves frs2 to docs/read_cache.py, which has a test of its own."""
    opened = unpack()
    decode = run("decode", arrays=opened["arrays"], codec=opened["codec"])["decode"]
    codec = codec_of(cache)
    for shard in shards(cache):
        for index, arrays in enumerate(arrays_of(unpack(shard)["group"])):
            features, scores, frs = decode(arrays, opened["codec"])
            expected = decoded(codec, arrays)
            assert bool(scores) == ("scores" in arrays)
            for what, found, levels in zip(("features", "scores"), (features, scores), expected):
                for level, (a, b) in enumerate(zip(found, levels, strict=True)):
                    assert a.shape == tuple(b.shape)
                    off = np.abs(a - b.numpy()).max()
                    assert off <= 1e-4 * float(b.abs().max()), (shard, index, what, level, off)
            for a, b in zip(frs, expected[2], strict=True):
                assert a.dtype == np.float32 and np.array_equal(a, b.numpy())


@pytest.mark.parametrize("profile", list(PROFILES))
def test_decoded_numbers_are_the_teachers(mixed: dict[str, Path], profile: str) -> None:
    """The page and the codec could be wrong together: the numbers must also be near what went in."""
    root = mixed[f"{profile} 2"]
    reader, codec = ShardReader(root / "pass-0" / "shard-00000.tar"), codec_of(root)
    pads = list(GRIDS)
    exact = PlannedTeacher(ShardPlan(()))([(pads[0], 1), (pads[0], 2)])
    features, scores, frs = decoded(codec, reader.read(1))
    for level, m in enumerate(exact.frs):
        weight = m[1].sqrt()
        for a, b in ((features[level], exact.features[level][1]), (scores[level].clamp_min(0), exact.scores[level][1])):
            assert float((weight * (a - b)).norm() / (weight * b).norm()) < 0.1
        assert float((frs[level] - m[1]).abs().max()) < 0.023


@pytest.mark.parametrize("images", [False, True])
def test_digests(of_version: dict[str, Path], images: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in of_version.items():
        folder = tmp_path / name
        shutil.copytree(config.parent / "cache", folder / "cache")
        if images:
            stage1(config, **{"cache.dir": str(folder / "cache"), "cache.images": True})
        monkeypatch.chdir(folder)
        found, opened = run("digests"), Cache("cache")
        assert found["recipe"] == opened.plan["recipe_digest"] and found["plan"] == opened.plan_digest
        assert found["content"] == opened.content() == json.loads(Path("cache/summary.json").read_text())["content"]
        sidecar = opened.shard(0, 0).sidecar
        assert (sidecar.plan, sidecar.codec) == (found["plan"], found["codec"])
        attributes = opened.shard(0, 0).attributes
        identity = [attributes[key] for key in ("plan", "recipe", "codec_digest")]
        assert identity == [found["plan"], found["recipe"], found["codec"]]


def test_check_finds_every_kind_of_damage(cache: Path, tmp_path: Path) -> None:
    check = run("check")["check"]
    for shard in shards(cache):
        check(shard)
    whole, copy = Path(shards(cache)[0]), tmp_path / "shard.tar"
    copy.with_suffix(".json").write_bytes(whole.with_suffix(".json").read_bytes())
    data = whole.read_bytes()
    sidecar = ShardReader(whole).sidecar
    places = [0, sidecar.samples[0].offset, sidecar.samples[-1].offset + 600, len(data) - 1]
    for damaged in (data[:-1024], data[: sidecar.samples[-1].offset], data + bytes(512), b""):
        copy.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"differ|expected"):
            check(copy)
    for at in places:
        copy.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match="differ"):
            check(copy)


def test_mix_and_the_view_rule(made: dict[str, Path]) -> None:
    found = run("mix")["mix"]
    for numbers in ((), (0,), (1,), (-1, 5), (520, 139, 1), (2**63, 2**64 + 3)):
        assert found(*numbers) == mix(*numbers)
    cache = Cache(made["frs"].parent / "cache")
    views = cache.recipe["views"]["finite"]
    refs = [ref for number in cache.passes() for shard in cache.references(number) for ref in shard]
    assert all(ref.view == (ref.cache_pass + found(ref.image_id)) % views for ref in refs)
    assert len({(ref.image_id, ref.view) for ref in refs}) == len(refs)


def fields(value: Any) -> Iterator[str]:
    yield from value if isinstance(value, dict) else ()


def test_every_field_is_described(of_version: dict[str, Path]) -> None:
    """A field that stage 1 starts to write must appear on the page."""
    page = DOC.read_text()
    for config in of_version.values():
        root = config.parent / "cache"
        plan, codec, manifest = (read_json(root / name) for name in ("plan.json", "codec.json", "pass-0/manifest.json"))
        reader = ShardReader(root / "pass-0" / "shard-00000.tar")
        sidecar = read_json(root / "pass-0" / "shard-00000.json")
        head: Any = reader.head
        arrays = head.specs if reader.sidecar.version == 1 else head.items
        values = [plan, plan["recipe"], *plan["recipe"].values(), plan["layout"], codec, codec["settings"], manifest]
        values = [value for value in values if value is not plan["recipe"]["teacher"]["preprocess"]]
        gate = read_json(root / "gate.json")
        values += [*manifest["files"].values(), gate, read_json(root / "pass-0/plan.json")]
        values += [sidecar, sidecar["head"], reader.attributes]
        names = {name for value in values for name in fields(value)}
        names |= {array.name for array in arrays} | set(reader.attributes["record_columns"][:13])
        names |= {path.name for path in root.rglob("*.json") if "codec" not in path.parts and "shard" not in path.name}
        names |= {path.name for path in (root / "codec").iterdir() if path.is_dir()}
        missing = sorted(name for name in names if f"`{name}`" not in page and f"/{name}`" not in page)
        assert not missing, missing


def listed(shard: str) -> list[str]:
    return subprocess.run(["tar", "-tf", shard], check=True, capture_output=True, text=True).stdout.split()


def test_the_tar_is_laid_out_as_described(cache: Path) -> None:
    for shard in shards(cache):
        if version_of(shard) == 1:
            check_layout_1(shard)
            continue
        group, reader = unpack(shard)["group"], ShardReader(Path(shard))
        head = ["zarr.json", "samples/zarr.json", "index/zarr.json"]
        head += ["index/record/zarr.json", "index/record/0.0", "index/thumbnail/zarr.json", "index/thumbnail/0.0.0.0"]
        assert listed(shard) == [*head, *(f"samples/{n}.0" for n in range(len(reader)))]
        assert group["samples"].shape == (len(reader), len(group.attrs["arrays"]))
        entries = {entry["name"]: entry for entry in group.attrs["arrays"]}
        for index, arrays in enumerate(arrays_of(group)):
            sides = arrays["record"][11:].reshape(-1, 2)
            positions = int(sides.prod(axis=1).sum())
            assert entries.keys() == arrays.keys() - {"record"}
            for name, array in reader.read(index).items():
                if name in entries:
                    assert (array.dtype, array.ndim) == (entries[name]["dtype"], len(entries[name]["dims"]))
            if group.attrs["codec"]["type"] == "lossless":
                assert {len(array) for name, array in arrays.items() if name in entries} == {positions}
            elif group.attrs["codec"]["type"] == "frs2":
                assert len(arrays["frs"]) == 2 * len(sides) + positions
                assert not (arrays["frs"][: len(sides)] & ~np.uint8(3)).any()
            else:
                assert len(arrays["frs"]) == len(sides) + positions
                assert all(arrays[name].all() for name in ("features", "scores") if name in entries)  # no padding
            assert np.array_equal(group["index/thumbnail"][index], reader.read(index)["thumbnail"])


def check_layout_1(shard: str) -> None:
    """Check the section on version 1."""
    root = json.loads(subprocess.run(["tar", "-xOf", shard, "zarr.json"], check=True, capture_output=True).stdout)
    arrays, index = root["attributes"]["arrays"], ("image_id", "view", "shapes")
    head = ["zarr.json", *(f"{name}/zarr.json" for name in arrays), "index/zarr.json"]
    for name in index:
        head += [f"index/{name}/zarr.json", f"index/{name}/c/0" + ("/0/0" if name == "shapes" else "")]
    group = unpack(shard)["group"]
    depth = {name: group[name].ndim for name in arrays}
    chunks = [
        "/".join([name, "c", str(n), *["0"] * (depth[name] - 1)])
        for n in range(group["record"].shape[0])
        for name in arrays
    ]
    assert listed(shard) == head + chunks
    sides = group["record"][:, 11:].reshape(group["index/shapes"].shape)
    assert np.array_equal(group["index/shapes"][:], sides)
    assert np.array_equal(group["index/image_id"][:], group["record"][:, 0])
    assert np.array_equal(group["index/view"][:], group["record"][:, 1])
    p = (sides[..., 0] * sides[..., 1]).sum(axis=1).max()
    if group.attrs["codec"]["type"] == "lossless":
        assert group["features"].shape[1] == p == group["frs"].shape[1]
    else:
        assert group["frs"].shape[1] == sides.shape[1] + p
        tokens = [group[name][:] for name in ("features", "scores") if name in group]
        assert all((array != 0).any(axis=0)[-1] for array in tokens)  # as long as needed
