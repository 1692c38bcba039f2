"""What is decoded of a cache is limited, whatever grids, tokens, channels and tables it declares."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.budget import BUDGET
from pipeline.cache.cache import Cache
from pipeline.cache.canonical import read_json
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.group import open_codec
from pipeline.errors import CodecError, CorruptCache
from pipeline.integrity.decode_all import find_decode_faults
from pipeline.progress import Silent
from pipeline.records import EncodedBatch, LevelShapes, TeacherOutput
from pipeline.tools.report.sample import DecodedSample
from tests.helpers.forged_caches import forge_codec, forge_pass, pyramid
from tests.helpers.memory import cost_of_verb, refused

MOST = 700  # MB, with the pages of torch's libraries
GRIDS: dict[str, tuple[tuple[int, int], LevelShapes, str]] = {
    "larger than the view": ((64, 96), pyramid(32, 48), r"FPN grid: expected at most \(16, 24\) for a view of"),
    "of a huge view": ((1 << 20, 1 << 20), pyramid(32, 48), "pixels of a view: expected at most"),
    "of a large view": ((4096, 4096), pyramid(1024, 1024), "positions of a view: expected at most"),
    "of a very large view": (
        (1 << 15, 1 << 15),
        pyramid(8192, 8192, 2),
        "(positions|decoded bytes) of a view: expected",
    ),
}


@pytest.fixture
def cache(of_version: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(of_version["frs"].parent / "cache", tmp_path / "cache"))


def verbs(root: Path, folder: Path) -> list[tuple[Any, ...]]:
    image = min(Cache(root).images())
    return [
        ("verify", root, "--deep"),
        ("export", root, "--image-id", image, "-o", folder / "export"),
        ("report", root, "-o", folder / "page.html"),
    ]


@pytest.mark.parametrize("name", GRIDS)
def test_grids(cache: Path, tmp_path: Path, name: str) -> None:
    pad, levels, message = GRIDS[name]
    if "very" in name and Cache(cache).version == 1:
        pytest.skip("its writer pads each sample; the grids are those of the test before")
    forge_pass(cache, pad, levels, views=2)
    for verb in verbs(cache, tmp_path):
        refused(cost_of_verb(*verb, log=tmp_path / "log"), message, MOST)


@pytest.mark.slow
def test_the_largest_views_are_decoded(cache: Path, tmp_path: Path) -> None:
    """As many positions and tokens as the budget allows, for eight views that compress to a few hundred kB."""
    forge_pass(cache, (2816, 4096), pyramid(352, 512))
    size = (cache / "pass-0/shard-00000.tar").stat().st_size
    for verb in verbs(cache, tmp_path):
        cost = cost_of_verb(*verb, log=tmp_path / "log")
        assert cost.code == 0 and cost.grown < 1000 and size < 1e6, cost


@pytest.mark.slow
def test_many_tokens(cache: Path, tmp_path: Path) -> None:
    """A token for each symbol: what finds the place of a token takes hundreds of bytes."""
    forge_pass(cache, (1024, 1024), pyramid(128, 128), views=8, tokens=BUDGET.tokens)
    cost = cost_of_verb("verify", cache, "--deep", log=tmp_path / "log")
    assert cost.code == 0 and cost.grown < 1000, cost


def test_large_samples_are_decoded_one_by_one(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cache, sizes = Cache(made["frs"].parent / "cache"), list[int]()
    decode = Frs.decode

    def spy(codec: Frs, batch: EncodedBatch) -> TeacherOutput:
        sizes.append(len(batch.levels))
        return decode(codec, batch)

    monkeypatch.setattr(Frs, "decode", spy)
    assert not list(find_decode_faults(cache.root, Silent())) and max(sizes) == 4
    views = sum(sizes)
    sizes.clear()
    monkeypatch.setattr("pipeline.integrity.decode_all.BUDGET", replace(BUDGET, batch_bytes=1))
    assert not list(find_decode_faults(cache.root, Silent())) and sizes == [1] * views
    refs = [ref for shard in cache.references(0) for ref in shard]
    assert len(DecodedSample(cache, open_codec(cache), refs).stored) == len(refs)
    monkeypatch.setattr("pipeline.tools.report.sample.BUDGET", replace(BUDGET, kept_bytes=1))
    assert len(DecodedSample(cache, open_codec(cache), refs).stored) == 1


def test_stage_1_refuses_views_that_cannot_be_read(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from pipeline.cache.shard_plan import ShardPlan
    from pipeline.stage1.passes import require_affordable

    codec = open_codec(Cache(made["frs"].parent / "cache"))
    job: Any = SimpleNamespace(teacher=SimpleNamespace(levels=lambda pad: pyramid(pad[0] // 8, pad[1] // 8)))
    plans = [ShardPlan(((pad, ((1, 0),)),)) for pad in ((800, 1344), (8192, 8192))]
    require_affordable(job, codec, plans[:1])
    with pytest.raises(CodecError, match=r"padded shape \(8192, 8192\): pixels of a view: expected at most"):
        require_affordable(job, codec, plans)


SETTINGS = {
    "channels": ({"channels": 10**6}, "settings.channels: expected a whole number from 1 to 4096, found 1000000"),
    "score channels": ({"score_channels": 10**6}, "settings.score_channels: expected a whole number from 0 to 16384"),
    "boxes": ({"box_channels": 2**62}, "settings.box_channels: expected"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_channels(cache: Path, tmp_path: Path, name: str) -> None:
    settings, message = SETTINGS[name]
    forge_codec(cache, settings)
    for verb in (("info", cache), ("verify", cache), ("report", cache, "-o", tmp_path / "page.html")):
        refused(cost_of_verb(*verb, log=tmp_path / "log"), re.escape(message), 64)


def test_tables(cache: Path, tmp_path: Path) -> None:
    """Tables of a rank above the channels, of many keys, and of more bytes than the budget allows."""
    whole = shutil.copytree(cache, tmp_path / "whole")
    tables = {name: table for name, table in open_codec(Cache(whole)).tables.items()}
    width, levels = read_json(cache / "codec.json")["settings"]["channels"], len(tables["feature_basis"])
    rank = 20_000
    wide = {
        "feature_basis": np.zeros((levels, width, rank), np.float32),
        "feature_expected": np.zeros((levels, rank, 16), np.int16),
    }
    forge_codec(cache, {"feature_rank": rank}, wide)
    with pytest.raises(CorruptCache, match=f"feature_basis: expected at most {width} planes, found {rank}"):
        open_codec(Cache(cache))
    shutil.rmtree(cache)
    shutil.copytree(whole, cache)
    (cache / "codec/large").mkdir()
    with open(cache / "codec/large/zarr.json", "wb") as file:
        file.truncate(BUDGET.table_bytes)
    forge_codec(cache, {})
    with pytest.raises(CorruptCache, match=r"expected at most \d+ bytes, found more"):
        open_codec(Cache(cache))


def test_tables_of_many_keys(made: dict[str, Path]) -> None:
    """The order of the symbols has an entry for each level, key and plane."""
    codec: Any = open_codec(Cache(made["frs"].parent / "cache"))
    levels, wide, buckets = 7, BUDGET.channels, codec.tables["feature_mean"].shape[1]
    expected = np.zeros((levels, wide, 16), np.int16)
    tables = {
        "feature_basis": np.broadcast_to(np.float16(0), (levels, wide, wide)),
        "feature_mean": np.broadcast_to(np.float32(0), (levels, buckets, wide)),
        "feature_expected": expected,
    }
    calibration = replace(codec.calibration, channels=wide, score_channels=0, score_step=None)
    forged = type(codec)(replace(codec.options, scores=False), calibration, tables)
    forged.validate()
    expected[0, 0, 0] = 510
    with pytest.raises(ValueError, match="bytes to order the features of a view: expected at most"):
        forged.validate()


def wide_tables(levels: int, features: int, scores: int) -> dict[str, np.ndarray]:
    """Tables of the widest head. features, scores: largest differences between their expected sizes."""
    channels, wide, buckets = (1, BUDGET.score_channels), (0, BUDGET.score_channels), 49
    tables = {"feature_basis": np.ones((levels, 1, 1), np.float32), "score_basis": np.eye(wide[1], 1, dtype=np.float32)}
    for what, width, single, largest in zip(("feature", "score"), channels, wide, (features, scores)):
        expected = np.zeros((levels, 1 + single, 16), np.int16)
        expected[0, 0, 0] = largest
        tables[f"{what}_expected"], tables[f"{what}_mean"] = expected, np.broadcast_to(0.0, (levels, buckets, width))
    return tables


@pytest.mark.parametrize(("features", "scores"), [(0, 510), (510, 0)])
def test_all_tensors_have_the_keys_of_the_widest_table(made: dict[str, Path], features: int, scores: int) -> None:
    """A few planes of features with many keys would give each of the scores' planes as many."""
    codec: Any = open_codec(Cache(made["frs"].parent / "cache"))
    calibration = replace(codec.calibration, channels=1, score_channels=BUDGET.score_channels)
    type(codec)(codec.options, calibration, wide_tables(9, 0, 0)).validate()
    with pytest.raises(ValueError, match="bytes to order the scores of a view: expected at most"):
        type(codec)(codec.options, calibration, wide_tables(9, features, scores)).validate()


def test_keys_of_a_table_that_no_codec_has(made: dict[str, Path]) -> None:
    codec: Any = open_codec(Cache(made["frs"].parent / "cache"))
    many = np.array([[[0] * 15 + [30_000]]], np.int16)
    with pytest.raises(ValueError, match="table other_expected: does not fit the settings"):
        type(codec).from_json(codec.settings, {**codec.tables, "other_expected": many})


def test_arrays_that_no_codec_has(made_1: dict[str, Path], tmp_path: Path) -> None:
    """Version 1 has a size for each array in the head; only those of the codec are decompressed."""
    root = Path(shutil.copytree(made_1["frs"].parent / "cache", tmp_path / "cache"))
    forge_pass(root, (1024, 1024), pyramid(128, 128), views=1, tokens=1)
    reader: Any = Cache(root).shard(0, 0)
    specs, chunks = reader.head.specs, reader.chunks(0)
    wide = next(spec for spec in specs if spec.name == "features")
    object.__setattr__(wide, "shape", (1 << 26,))
    with pytest.raises(CorruptCache, match="features: declares 268435456 bytes, expected at most"):
        reader.coded(0, chunks, open_codec(Cache(root)))
    object.__setattr__(wide, "name", "other")
    chunks = {("other" if name == "features" else name): chunk for name, chunk in chunks.items()}
    with pytest.raises(CorruptCache, match="array other: not an array of this codec"):
        reader.coded(0, chunks, open_codec(Cache(root)))
