"""Both codecs: round trips of any shape, stated errors, determinism, no silent clipping."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.canonical import read_json
from pipeline.cache.items import decode_item
from pipeline.cache.version2 import encode_sample
from pipeline.codecs.base import Codec
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs.fit import learn_order, learn_statistics
from pipeline.codecs.frs.settings import FrsCalibration, FrsOptions
from pipeline.codecs.frs.weighted import WeightedTransform
from pipeline.codecs.group import load_codec, save_codec
from pipeline.codecs.packing import pack, positions, stack, unpack
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.errors import CodecError, ConfigError, CorruptCache
from pipeline.records import TeacherOutput, canvas
from tests.helpers.outputs import RandomSample, calibrated_codec, random_output, weighted_error
from tests.helpers.paths import ROOT


def round_trip(codec: Codec, *batches: TeacherOutput) -> TeacherOutput:
    levels = tuple(batch.levels for batch in batches for _ in range(batch.frs[0].shape[0]))
    samples = [sample for batch in batches for sample in codec.encode(batch)[0]]
    stored = []
    for sample, own in zip(samples, levels, strict=True):
        encoded, limits = encode_sample(codec.items(), sample), codec.size_limits(own)
        rows = {i.name: decode_item(i, encoded[i.name], limits[i.name], positions(own)) for i in codec.items()}
        stored.append(codec.read_sample(rows, own))
    return codec.decode(stack(stored, levels))


SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=40, deadline=None)
@given(st.lists(SIDES, min_size=2, max_size=2), st.lists(SIDES, min_size=2, max_size=2), st.integers(1, 3))
def test_lossless_is_exact_for_any_shapes(first: list, second: list, batch: int) -> None:
    codec = calibrated_codec("lossless")
    one, two = random_output(batch, first, 8, 6, 1), random_output(1, second, 8, 6, 2)
    back = round_trip(codec, one, two)
    assert back.levels == canvas((one.levels, two.levels))
    for level in range(2):
        for rows, exact in ((slice(0, batch), one), (slice(batch, None), two)):
            h, w = exact.levels[level]
            assert torch.equal(back.features[level][rows, :, :h, :w], exact.features[level])
            assert torch.equal(back.scores[level][rows, :, :h, :w], exact.scores[level])
            assert torch.equal(back.frs[level][rows, :h, :w], exact.frs[level])
            assert back.frs[level][rows, h:].sum() == 0 and back.frs[level][rows, :, w:].sum() == 0


def exact_frs(channels: int, scores: int, step: float) -> Frs:
    """A codec of full rank and given steps: what it loses is rounding alone, and that can be bounded."""
    options, sample = FrsOptions(zstd_level=1, quality=0.03), RandomSample(channels, scores, [(16, 24), (8, 12)])
    transform = WeightedTransform(255, options.profile, {})
    learned = learn_statistics(transform, options.kinds, sample.outputs("learning"))
    order = learn_order(transform.with_tables(learned.tables), options.kinds, sample.outputs("learning"))
    return Frs(options, FrsCalibration(255, *learned.channels, step, step), learned.tables | order)


@settings(max_examples=60, deadline=None)
@given(st.lists(SIDES, min_size=2, max_size=2), st.integers(1, 3), st.floats(1e-6, 1e4), st.data())
def test_frs_error_is_bounded_by_its_step(sizes: list, batch: int, scale: float, data: st.DataObject) -> None:
    """Orthonormal transforms: the weighted error cannot exceed half a step in every coded coefficient."""
    step = 0.02 * max(1.0, scale / 1e3)  # a value must fit into a token
    codec = exact_frs(8, 6, step)
    exact = random_output(batch, sizes, 8, 6, 5)
    frs = [m * data.draw(st.sampled_from([1.0, 1e-3, 1e-9])) for m in exact.frs]
    for m in frs:  # zeros and ones anywhere
        m[:, data.draw(st.integers(0, m.shape[1] - 1))] = data.draw(st.sampled_from([0.0, 1.0]))
    exact = TeacherOutput([f * scale for f in exact.features], exact.scores, frs)
    back = round_trip(codec, exact)
    total = sum(m.sum(dim=(1, 2)) for m in back.frs).clamp_min(1e-30)
    for level, m in enumerate(back.frs):
        positions = (-(-m.shape[1] // 4) * 4) * (-(-m.shape[2] // 4) * 4)
        bound = 0.5 * step * m.sum(dim=(1, 2)).sqrt() * total**-0.3 * positions**0.5
        pairs = [(8, back.features[level], exact.features[level])]
        pairs.append((6, back.scores[level].sign() * back.scores[level].abs().sqrt(), exact.scores[level].sqrt()))
        for channels, found, wanted in pairs:
            lost = (m[:, None] * (found - wanted) ** 2).sum(dim=(1, 2, 3)).sqrt()
            size = (m[:, None] * wanted**2).sum(dim=(1, 2, 3)).sqrt()  # float32 has an error of its own
            assert (lost <= 1.01 * bound * channels**0.5 + 1e-5 * (size + m.sum(dim=(1, 2)).sqrt())).all()


@pytest.mark.parametrize("quality", [0.01, 0.03, 0.10])
def test_the_quality_asked_for_is_what_comes_out(quality: float) -> None:
    codec = calibrated_codec("frs", quality=quality)
    fresh = [random_output(2, [(16, 24), (8, 12)], 8, 6, n) for n in range(30, 36)]
    for what in ("feature", "score"):
        mean = sum(weighted_error(what, round_trip(codec, exact), exact) for exact in fresh) / len(fresh)
        assert quality / 1.5 < mean < quality * 1.5
        assert quality / 1.5 < codec.settings["probe_error"][what] < quality * 1.5


def test_quality_names() -> None:
    assert calibrated_codec("frs", quality="small").tables.keys() == calibrated_codec("frs", quality=0.1).tables.keys()
    steps = [calibrated_codec("frs", quality=q).settings["feature_step"] for q in ("high", "balanced", "small")]
    assert steps == sorted(steps) and steps[0] < steps[2] / 3


@pytest.mark.parametrize("scores", [1, 3, 80, 720])
def test_empty_maps_and_single_positions(scores: int) -> None:
    codec = calibrated_codec("frs", classes=scores)
    blank = random_output(1, [(1, 1), (1, 1)], 8, scores)
    blank = TeacherOutput(blank.features, [torch.zeros_like(s) for s in blank.scores], [torch.zeros(1, 1, 1)] * 2)
    back = round_trip(codec, blank)
    assert all(torch.isfinite(f).all() for f in back.features + back.scores)
    assert all((m == 0).all() for m in back.frs)
    assert all(len(sample["features"]) == len(sample["scores"]) == 0 for sample in codec.encode(blank)[0])
    ones = TeacherOutput(blank.features, [torch.ones_like(s) for s in blank.scores], [torch.ones(1, 1, 1)] * 2)
    assert all((m == 1).all() for m in round_trip(codec, ones).frs)


def test_what_cannot_be_stored_is_refused() -> None:
    codec = calibrated_codec("frs")
    good = random_output(1, [(4, 4), (2, 2)], 8, 6)
    huge = TeacherOutput([f * 1e12 for f in good.features], good.scores, good.frs)
    with pytest.raises(CodecError, match="too large for the step"):
        codec.encode(huge)
    for bad in (float("nan"), float("inf")):
        features = [f.clone() for f in good.features]
        features[1][0, 0, 0, 0] = bad
        for kind in ("frs", "lossless"):
            with pytest.raises(CodecError, match=r"level 1.*NaN"):
                calibrated_codec(kind).encode(TeacherOutput(features, good.scores, good.frs))
    with pytest.raises(CodecError, match="sigmoid"):
        codec.encode(TeacherOutput(good.features, [s + 1 for s in good.scores], good.frs))
    with pytest.raises(CodecError, match="expected"):
        codec.encode(random_output(1, [(4, 4), (2, 2)], 9, 6))


@settings(max_examples=40, deadline=None)
@given(st.lists(SIDES, min_size=1, max_size=4), st.integers(0, 5))
def test_pack_and_unpack(sizes: list, spare: int) -> None:
    levels = [torch.randn(2, 3, h, w) for h, w in sizes]
    packed = torch.nn.functional.pad(pack(levels), (0, spare))  # a batch's larger samples make room behind smaller ones
    back = unpack(packed, (tuple(sizes),) * 2)
    assert all(torch.equal(a, b) for a, b in zip(levels, back))


def test_decoding_does_not_depend_on_threads_or_processes(tmp_path: Path) -> None:
    codec = calibrated_codec("frs")
    exact = random_output(2, [(16, 24), (8, 12)], 8, 6, 3)
    levels = (exact.levels,) * 2
    samples = codec.encode(exact)[0]
    specs = codec.items()
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda sample: encode_sample(specs, sample), samples * 8))
    assert all(chunks == encode_sample(specs, samples[n % 2]) for n, chunks in enumerate(many))
    save_codec(codec, tmp_path, {})
    torch.save({k: torch.from_numpy(v.copy()) for k, v in stack_arrays(samples).items()}, tmp_path / "batch.pt")
    code = (
        "import sys, json, hashlib, torch, pathlib\n"
        "from pipeline.codecs.group import load_codec\nfrom pipeline.records import EncodedBatch\n"
        "root = pathlib.Path(sys.argv[1]); torch.set_num_threads(1)\n"
        "codec = load_codec(root, json.loads((root / 'codec.json').read_text()))\n"
        "arrays = torch.load(root / 'batch.pt', weights_only=True)\n"
        "levels = (((16, 24), (8, 12)),) * 2\n"
        "out = codec.decode(EncodedBatch(arrays, levels, torch.tensor(levels)))\n"
        "tensors = out.features + out.scores + out.frs\n"
        "print(hashlib.sha256(b''.join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    back = codec.decode(stack(samples, levels))
    tensors = back.features + back.scores + back.frs
    here = hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()
    assert done.stdout.strip() == here


def stack_arrays(samples: list[dict]) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in stack(samples, [((16, 24), (8, 12))] * 2).arrays.items()}


def test_saved_tables_decode_the_same(tmp_path: Path) -> None:
    codec = calibrated_codec("frs")
    save_codec(codec, tmp_path, {"views": 8})
    import json

    again = load_codec(tmp_path, json.loads((tmp_path / "codec.json").read_text()))
    exact = random_output(1, [(16, 24), (8, 12)], 8, 6, 3)
    one, two = round_trip(codec, exact), round_trip(again, exact)
    assert all(torch.equal(a, b) for a, b in zip(one.features + one.scores, two.features + two.scores))
    assert again.settings == codec.settings


def test_calibration_makes_a_new_codec_that_does_not_change() -> None:
    options = read_options({"type": "frs", "quality": 0.1})

    codec = calibrate_codec(options, RandomSample(8, 6, [(16, 24), (8, 12)]))

    assert codec.options is options and options == read_options({"type": "frs", "quality": 0.1})
    with pytest.raises(FrozenInstanceError):
        codec.tables = {}  # type: ignore[misc]
    coarser = codec.coarser(2.0)
    assert coarser is not None and coarser.settings["feature_step"] == 2 * codec.settings["feature_step"]
    assert calibrated_codec("lossless").coarser(2.0) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("map_top", 256),
        ("feature_step", -1.0),
        ("score_step", None),
        ("channels", 0),
        ("score_channels", 0),
        ("profile", "none"),
        ("zstd", "8"),
        ("feature_step", 10**400),
    ],
)
def test_settings_of_a_cache_are_checked_when_it_is_opened(tmp_path: Path, field: str, value: Any) -> None:
    codec = calibrated_codec("frs", quality=0.1)
    save_codec(codec, tmp_path, {})
    manifest = read_json(tmp_path / "codec.json")

    with pytest.raises(CorruptCache, match=r"cannot be opened \(settings\."):
        load_codec(tmp_path, {**manifest, "settings": {**manifest["settings"], field: value}})


BAD = [
    {"type": "zip"},
    {"type": None},
    {"type": "frs", "stepp": 1},
    {"type": "frs", "zstd": 40},
    {"type": "frs", "zstd": "9"},
    {"type": "frs", "quality": 0},
    {"type": "frs", "quality": "best"},
    {"type": "frs", "quality": True},
    {"type": "frs", "quality": [1]},
    {"type": "lossless", "quality": 0.1},
]


@pytest.mark.parametrize("bad", BAD)
def test_settings_are_checked(bad: dict) -> None:
    with pytest.raises(ConfigError, match=r"cache\.codec"):
        read_options(bad)
