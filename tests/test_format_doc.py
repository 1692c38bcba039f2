"""docs/format.md is true: its code blocks run as they stand and agree with this project's own reading."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import digest, read_json
from pipeline.cache.reader import ShardReader
from pipeline.cache.shard_plan import ShardPlan, mix
from pipeline.codecs.base import Codec
from pipeline.codecs.frs.settings import PROFILES
from pipeline.codecs.group import load_codec, save_codec
from pipeline.codecs.packing import stack
from pipeline.codecs.registry import codec_settings, new_codec
from pipeline.records import LevelShapes, TeacherOutput, ViewRecord
from pipeline.stage1.encode import encode_views
from pipeline.stage1.shard import ShardTarget
from tests.test_codec import weighted_error

DOC = Path(__file__).parent.parent / "docs" / "format.md"
SHARD = "cache/pass-0/shard-00000.tar"  # as the blocks name it
NAMES = ("digests", "mix", "check", "stream", "unpack", "open", "in_place", "decode")

# Grids of one shard that is mixed on purpose: neither P nor P4 is the same, and only one has sides that are no
# multiples of 4 on every level.
GRIDS: dict[tuple[int, int], LevelShapes] = {
    (72, 104): ((9, 13), (5, 7), (3, 4), (1, 2)),
    (80, 96): ((10, 12), (5, 6), (3, 3), (2, 2)),
    (64, 96): ((8, 12), (4, 4), (4, 4), (1, 1)),
}
CHANNELS, SCORE_CHANNELS = 6, 10


def blocks() -> dict[str, str]:
    found = re.findall(r"<!-- test: (\w+) -->\n```\w+\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert [name for name, _ in found] == list(NAMES)
    return dict(found)


def run(name: str, shard: str = SHARD, **given: Any) -> dict[str, Any]:
    """Execute a block of the page in the current folder, on another shard if asked to. Returns its names."""
    namespace = dict(given)
    exec(compile(blocks()[name].replace(SHARD, shard), f"{DOC.name}:{name}", "exec"), namespace)
    return namespace


def unpack(shard: str = SHARD) -> dict[str, Any]:
    """Way (b) of the page: a folder `out`, opened."""
    shutil.rmtree("out", ignore_errors=True)
    subprocess.run(["sh", "-euc", blocks()["unpack"].replace(SHARD, shard)], check=True)
    return run("open")


class PlannedTeacher:
    """Replaces teacher and loader: batches of seeded numbers on the grids of GRIDS."""

    def __init__(self, plan: ShardPlan) -> None:
        self._plan = plan

    def levels(self, pad: tuple[int, int]) -> LevelShapes:
        return GRIDS[pad]

    def batches(self) -> Iterator[tuple[Any, list[Any], list[ViewRecord]]]:
        for pad, batch in self._plan.batches:
            thumbnail = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
            records = [ViewRecord(i, v, pad, (480, 640), pad, v, 2**32 - i, 7, thumbnail) for i, v in batch]
            yield (pad, batch), [(pad, image) for image, _ in batch], records

    def __call__(self, views: list[tuple[tuple[int, int], int]]) -> TeacherOutput:
        generator = torch.Generator().manual_seed(views[0][1])
        features, scores = [], []
        for height, width in GRIDS[views[0][0]]:
            features.append(torch.randn(len(views), CHANNELS, height, width, generator=generator) * 5 + 1)
            # From all but 1 down to far below the map's grid.
            scores.append(torch.rand(len(views), SCORE_CHANNELS, height, width, generator=generator) ** 8)
            scores[-1][:, :, : height // 2] *= 1e-6
        scores[-1][0] = 0  # a level without any score
        if views[0][1] == 3:
            scores = [torch.zeros_like(t) for t in scores]  # a sample without any
        return TeacherOutput(features, scores, [t.amax(dim=1) for t in scores])


class PlannedSample:
    """The same batches to calibrate on; the error asked for is that of the weighted tensors."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        for _, views, _ in self._teacher.batches():
            if views[0][1] != 3:
                yield self._teacher(views)

    def probes(self, part: str, losses: Sequence[str]) -> Iterator[Any]:
        for exact in self.outputs(part):
            yield exact, lambda coded, exact=exact: {loss: weighted_error(loss, coded, exact) for loss in losses}


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds: dict[str, dict[str, Any]] = {profile: {"profile": profile} for profile in PROFILES}
    kinds["no scores"], kinds["lossless, no scores"] = {"scores": False}, {"type": "lossless", "scores": False}
    return {name: make_mixed(tmp_path_factory.mktemp("mixed"), settings) for name, settings in kinds.items()}


def make_mixed(root: Path, settings: dict[str, Any]) -> Path:
    """A cache folder of one shard whose samples have different grids, some with a map of zeros."""
    pads = list(GRIDS)
    plan = ShardPlan(((pads[0], ((1, 0), (2, 1))), (pads[1], ((3, 0),)), (pads[2], ((4, 3), (5, 2)))))
    teacher: Any = PlannedTeacher(plan)
    settings = {"type": "frs", **settings}
    codec = new_codec(codec_settings(settings | ({"quality": 0.01} if settings["type"] == "frs" else {})))
    codec.calibrate(PlannedSample(teacher))
    save_codec(codec, root, {"views": 5})
    identity = {"pass": 0, "shard": 0, "plan": "plan", "recipe": "recipe"}
    tar = root / "pass-0" / "shard-00000.tar"
    codec_digest = digest(read_json(root / "codec.json"))
    levels = [GRIDS[pad] for _, _, pad in plan.samples]
    with ShardTarget(tar, identity, codec, codec_digest, plan, levels).new_shard() as shard:
        for _, views, records in teacher.batches():
            shard.add(encode_views(codec, teacher(views), records))
        shard.commit()
    return root


@pytest.fixture(
    params=["frs", "lossless", "mixed frs", "mixed universal", "mixed no scores", "mixed lossless, no scores"]
)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's `cache` folder, beside which its blocks run."""
    if request.param.startswith("mixed"):
        root = request.getfixturevalue("mixed")[request.param.removeprefix("mixed ")]
    else:
        root = request.getfixturevalue("made")[request.param].parent / "cache"
    (tmp_path / "cache").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    return Path("cache")


def shards(cache: Path) -> list[str]:
    found = sorted(str(path) for path in cache.glob("pass-*/shard-*.tar"))
    assert found
    return found


def codec_of(cache: Path) -> Codec:
    return load_codec(cache, read_json(cache / "codec.json"))


def decoded(codec: Codec, arrays: dict[str, np.ndarray]) -> list[list[Tensor]]:
    """This project's own decoding of one sample: features, scores and map of every level."""
    stored = dict(arrays)
    _, levels = ViewRecord.from_row(stored.pop("record"), stored.pop("thumbnail"))
    output = codec.decode(stack([stored], [levels]))
    return [[t[0] for t in tensors] for tensors in (output.features, output.scores, output.frs)]


def test_three_readers_agree(cache: Path) -> None:
    streamed = run("stream")["stream"]
    for shard in shards(cache):
        unpacked = unpack(shard)["group"]
        in_place = run("in_place", shard)["group"]
        reader, samples = ShardReader(Path(shard)), list(streamed([shard]))
        assert len(samples) == len(reader) > 0
        for index, sample in enumerate(samples):
            expected = reader.read(index)
            assert list(sample) == list(expected) == unpacked.attrs["arrays"] == in_place.attrs["arrays"]
            for name, array in expected.items():
                for found in (sample[name], unpacked[name][index], in_place[name][index]):
                    assert found.dtype == array.dtype and found.shape == array.shape
                    assert np.array_equal(found, array), (shard, index, name)


def test_streaming_several_shards_loses_nothing(cache: Path) -> None:
    samples = list(run("stream")["stream"](shards(cache)))
    found = sorted(tuple(int(n) for n in sample["record"][:2]) for sample in samples)
    readers = [ShardReader(Path(shard)) for shard in shards(cache)]
    assert found == sorted((s.image_id, s.view) for reader in readers for s in reader.sidecar.samples)


def test_streaming_refuses_a_flipped_chunk(cache: Path, tmp_path: Path) -> None:
    data = bytearray(Path(shards(cache)[0]).read_bytes())
    extent = ShardReader(Path(shards(cache)[0])).sidecar.samples[0]
    data[extent.offset + 512 + 20] ^= 4  # in the first chunk, past its tar header
    (tmp_path / "flipped.tar").write_bytes(data)
    with pytest.raises(RuntimeError, match="checksum"):
        list(run("stream")["stream"]([str(tmp_path / "flipped.tar")]))


def test_numpy_decodes_as_the_codec_does(cache: Path) -> None:
    opened = unpack()
    decode = run("decode", arrays=opened["arrays"], codec=opened["codec"])["decode"]
    codec = codec_of(cache)
    for shard in shards(cache):
        group = run("in_place", shard)["group"]
        for index in range(group["record"].shape[0]):
            arrays = {name: group[name][index] for name in group.attrs["arrays"]}
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
    root = mixed[profile]
    reader, codec = ShardReader(root / "pass-0" / "shard-00000.tar"), codec_of(root)
    pads = list(GRIDS)
    exact = PlannedTeacher(ShardPlan(()))([(pads[0], 1), (pads[0], 2)])
    features, scores, frs = decoded(codec, reader.read(1))
    for level, m in enumerate(exact.frs):
        weight = m[1].sqrt()
        for a, b in ((features[level], exact.features[level][1]), (scores[level].clamp_min(0), exact.scores[level][1])):
            assert float((weight * (a - b)).norm() / (weight * b).norm()) < 0.1
        assert float((frs[level] - m[1]).abs().max()) < 0.023


def test_digests(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in made.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "cache").symlink_to(config.parent / "cache")
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


def test_every_field_is_described(made: dict[str, Path]) -> None:
    """A field that stage 1 starts to write must appear on the page."""
    page = DOC.read_text()
    for config in made.values():
        root = config.parent / "cache"
        plan, codec, manifest = (read_json(root / name) for name in ("plan.json", "codec.json", "pass-0/manifest.json"))
        reader = ShardReader(root / "pass-0" / "shard-00000.tar")
        sidecar = read_json(root / "pass-0" / "shard-00000.json")
        values = [plan, plan["recipe"], *plan["recipe"].values(), plan["layout"], codec, codec["settings"], manifest]
        values = [value for value in values if value is not plan["recipe"]["teacher"]["preprocess"]]
        gate = read_json(root / "gate.json")
        values += [*manifest["files"].values(), gate, read_json(root / "pass-0/plan.json")]
        values += [sidecar, sidecar["head"], reader.attributes]
        names = {name for value in values for name in fields(value)}
        names |= {spec.name for spec in reader.specs} | set(reader.attributes["record_columns"][:13])
        names |= {path.name for path in root.rglob("*.json") if "codec" not in path.parts and "shard" not in path.name}
        names |= {path.name for path in (root / "codec").iterdir() if path.is_dir()}
        missing = sorted(name for name in names if f"`{name}`" not in page and f"/{name}`" not in page)
        assert not missing, missing


def test_the_tar_is_laid_out_as_described(cache: Path) -> None:
    for shard in shards(cache):
        listed = subprocess.run(["tar", "-tf", shard], check=True, capture_output=True, text=True).stdout.split()
        root = json.loads(subprocess.run(["tar", "-xOf", shard, "zarr.json"], check=True, capture_output=True).stdout)
        arrays, index = root["attributes"]["arrays"], ("image_id", "view", "shapes")
        head = ["zarr.json", *(f"{name}/zarr.json" for name in arrays), "index/zarr.json"]
        for name in index:
            head += [f"index/{name}/zarr.json", f"index/{name}/c/0" + ("/0/0" if name == "shapes" else "")]
        group = run("in_place", shard)["group"]
        depth = {name: group[name].ndim for name in arrays}
        chunks = [
            "/".join([name, "c", str(n), *["0"] * (depth[name] - 1)])
            for n in range(group["record"].shape[0])
            for name in arrays
        ]
        assert listed == head + chunks
        sides = group["record"][:, 11:].reshape(group["index/shapes"].shape)
        assert np.array_equal(group["index/shapes"][:], sides)
        assert np.array_equal(group["index/image_id"][:], group["record"][:, 0])
        assert np.array_equal(group["index/view"][:], group["record"][:, 1])
        p = (sides[..., 0] * sides[..., 1]).sum(axis=1).max()
        if group.attrs["codec"]["type"] == "lossless":
            assert group["features"].shape[1] == p == group["frs"].shape[1]
        else:
            assert group["frs"].shape[1] == sides.shape[1] + p
            assert all(
                (group[name][:] != 0).any(axis=0)[-1] for name in ("features", "scores") if name in group
            )  # as long as needed
