"""Both codecs: round trips of any shape, stated errors, determinism, no silent clipping."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.arrays import decode_chunk, encode_chunk
from pipeline.codec import codec_settings, load_codec, new_codec, save_codec
from pipeline.codec.base import Codec, pack, stack, unpack
from pipeline.codec.mapcode import BUCKETS, buckets, decode_map, encode_map
from pipeline.codec.transform import dct, klt, unzigzag, zigzag
from pipeline.errors import CodecError, ConfigError
from pipeline.records import TeacherOutput, canvas


def output(batch: int, sizes: list[tuple[int, int]], channels: int, scores: int, seed: int = 0) -> TeacherOutput:
    """Smooth features and mostly weak scores, as teachers give them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=torch.Generator().manual_seed(99)) / channels**0.5
    features, probabilities = [], []
    for h, w in sizes:
        coarse = torch.randn(batch, channels, max(1, h // 4), max(1, w // 4), generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear")
        features.append(torch.einsum("ij,bjhw->bihw", mixing, smooth))
        logits = torch.randn(batch, scores, max(1, h // 4), max(1, w // 4), generator=generator) * 3 - 5
        probabilities.append(torch.nn.functional.interpolate(logits, (h, w), mode="bilinear").sigmoid())
    return TeacherOutput(features, probabilities, [p.amax(dim=1) for p in probabilities])


def calibrated(kind: str, channels: int = 8, scores: int = 6, levels: int = 2, **settings_: float) -> Codec:
    codec = new_codec(codec_settings({"type": kind, **settings_}))
    codec.calibrate(output(2, [(16, 24), (8, 12)][:levels], channels, scores, seed) for seed in range(4))
    return codec


def round_trip(codec: Codec, *batches: TeacherOutput) -> TeacherOutput:
    levels = tuple(batch.levels for batch in batches for _ in range(batch.frs[0].shape[0]))
    specs = codec.specs(levels)
    samples = [sample for batch in batches for sample in codec.encode(batch)[0]]
    stored = [{s.name: decode_chunk(s, encode_chunk(s, sample[s.name])) for s in specs} for sample in samples]
    return codec.decode(stack(stored, levels))


SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=40, deadline=None)
@given(st.lists(SIDES, min_size=2, max_size=2), st.lists(SIDES, min_size=2, max_size=2), st.integers(1, 3))
def test_lossless_is_exact_for_any_shapes(first: list, second: list, batch: int) -> None:
    codec = calibrated("lossless")
    one, two = output(batch, first, 8, 6, 1), output(1, second, 8, 6, 2)
    back = round_trip(codec, one, two)
    assert back.levels == canvas((one.levels, two.levels))
    for level in range(2):
        for rows, exact in ((slice(0, batch), one), (slice(batch, None), two)):
            h, w = exact.levels[level]
            assert torch.equal(back.features[level][rows, :, :h, :w], exact.features[level])
            assert torch.equal(back.scores[level][rows, :, :h, :w], exact.scores[level])
            assert torch.equal(back.frs[level][rows, :h, :w], exact.frs[level])
            assert back.frs[level][rows, h:].sum() == 0 and back.frs[level][rows, :, w:].sum() == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(SIDES, min_size=2, max_size=2), st.integers(1, 3), st.floats(1e-3, 10))
def test_frs_error_is_bounded_by_its_step(sizes: list, batch: int, scale: float) -> None:
    """Orthonormal transforms: the weighted error cannot exceed half a step in every coded coefficient."""
    codec = calibrated("frs", feature_step=0.02, score_step=0.02, energy=1.0)
    exact = output(batch, sizes, 8, 6, 5)
    exact = TeacherOutput([f * scale for f in exact.features], exact.scores, exact.frs)
    back = round_trip(codec, exact)
    total = sum(m.sum(dim=(1, 2)) for m in back.frs)
    for level, m in enumerate(back.frs):
        positions = (-(-m.shape[1] // 4) * 4) * (-(-m.shape[2] // 4) * 4)
        step = codec.settings["feature_scale"] * 0.02 * m.sum(dim=(1, 2)).sqrt() * total**-0.3
        lost = (m[:, None] * (back.features[level] - exact.features[level]) ** 2).sum(dim=(1, 2, 3)).sqrt()
        assert (lost <= 0.5 * step * (8 * positions) ** 0.5 * 1.01 + 1e-4 * scale).all()


def test_frs_gets_better_with_its_step() -> None:
    exact = output(2, [(16, 24), (8, 12)], 8, 6, 9)
    errors = []
    for step in (0.2, 0.05, 0.01):
        back = round_trip(calibrated("frs", feature_step=step, score_step=step, energy=1.0), exact)
        pairs = ((back.features[0], exact.features[0]), (back.scores[0], exact.scores[0]))
        errors.append([float((exact.frs[0][:, None] * (b - e) ** 2).sum()) for b, e in pairs])
    assert errors[0][0] > errors[1][0] > errors[2][0] and errors[0][1] > errors[1][1] > errors[2][1]


@pytest.mark.parametrize("scores", [1, 3, 80])
def test_empty_maps_and_single_positions(scores: int) -> None:
    codec = calibrated("frs", scores=scores)
    blank = output(1, [(1, 1), (1, 1)], 8, scores)
    blank = TeacherOutput(blank.features, [torch.zeros_like(s) for s in blank.scores], [torch.zeros(1, 1, 1)] * 2)
    back = round_trip(codec, blank)
    assert all(torch.isfinite(f).all() for f in back.features + back.scores)
    assert all((m == 0).all() for m in back.frs)
    ones = TeacherOutput(blank.features, [torch.ones_like(s) for s in blank.scores], [torch.ones(1, 1, 1)] * 2)
    assert all((m == 1).all() for m in round_trip(codec, ones).frs)


def test_what_cannot_be_stored_is_refused() -> None:
    codec = calibrated("frs")
    good = output(1, [(4, 4), (2, 2)], 8, 6)
    huge = TeacherOutput([f * 1e9 for f in good.features], good.scores, good.frs)
    with pytest.raises(CodecError, match="step is too fine"):
        codec.encode(huge)
    for bad in (float("nan"), float("inf")):
        features = [f.clone() for f in good.features]
        features[1][0, 0, 0, 0] = bad
        for kind in ("frs", "lossless"):
            with pytest.raises(CodecError, match=r"level 1.*NaN"):
                calibrated(kind).encode(TeacherOutput(features, good.scores, good.frs))
    with pytest.raises(CodecError, match="sigmoid"):
        codec.encode(TeacherOutput(good.features, [s + 1 for s in good.scores], good.frs))
    with pytest.raises(CodecError, match="expected"):
        codec.encode(output(1, [(4, 4), (2, 2)], 9, 6))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-32767, 32767), min_size=1, max_size=50))
def test_zigzag(values: list[int]) -> None:
    stored = zigzag(torch.tensor(values, dtype=torch.float32)).numpy().astype(np.uint16)
    assert unzigzag(torch.from_numpy(stored.view(np.int16))).tolist() == values


def test_map_codes() -> None:
    m = torch.cat([torch.tensor([0.0, 1.0]), torch.logspace(-4.7, 0, 500)])
    codes = encode_map(m)
    assert codes[0] == 0 and codes[1] == 255
    back = decode_map(codes)
    assert back[0] == 0 and back[1] == 1 and torch.equal(encode_map(back), codes)
    assert ((back[1:] / m[1:]).log2().abs() <= 1 / 32 + 1e-6).all()
    b = buckets(torch.arange(256, dtype=torch.uint8))
    assert b[0] == 0 and b[1] == 1 and b[255] == BUCKETS - 1 and (b.diff() >= 0).all()


def test_dct_is_orthonormal() -> None:
    x = torch.randn(2, 3, 8, 12)
    y = dct(x)
    assert torch.allclose(dct(y, inverse=True), x, atol=1e-5)
    assert torch.allclose(y.square().sum(), x.square().sum(), rtol=1e-5)
    constant = dct(torch.ones(1, 1, 4, 4))
    assert constant[0, 0, 0, 0] == pytest.approx(4) and constant.flatten()[1:].abs().max() < 1e-6


def test_klt_is_deterministic_and_orthonormal() -> None:
    a = np.random.default_rng(0).normal(size=(20, 6))
    vectors, values = klt(a.T @ a)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-5)
    assert (np.diff(values) <= 0).all() and (vectors[np.abs(vectors).argmax(axis=0), np.arange(6)] > 0).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(SIDES, min_size=1, max_size=4), st.sampled_from([1, 4]))
def test_pack_and_unpack(sizes: list, multiple: int) -> None:
    up = lambda n: -(-n // multiple) * multiple  # noqa: E731
    levels = [torch.randn(2, 3, up(h), up(w)) for h, w in sizes]
    back = unpack(pack(levels), (tuple(sizes),) * 2, multiple)
    assert all(torch.equal(a, b) for a, b in zip(levels, back))


def test_decoding_does_not_depend_on_threads_or_processes(tmp_path: Path) -> None:
    codec = calibrated("frs")
    exact = output(2, [(16, 24), (8, 12)], 8, 6, 3)
    levels = (exact.levels,) * 2
    specs = codec.specs(levels)
    samples = codec.encode(exact)[0]
    encode = lambda s: {spec.name: encode_chunk(spec, s[spec.name]) for spec in specs}  # noqa: E731
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(encode, samples * 8))
    assert all(chunks == encode(samples[n % 2]) for n, chunks in enumerate(many))
    save_codec(codec, tmp_path, {})
    torch.save({k: torch.from_numpy(v.copy()) for k, v in stack_arrays(samples).items()}, tmp_path / "batch.pt")
    code = (
        "import sys, json, hashlib, torch, pathlib\n"
        "from pipeline.codec import load_codec\nfrom pipeline.records import EncodedBatch\n"
        "root = pathlib.Path(sys.argv[1]); torch.set_num_threads(1)\n"
        "codec = load_codec(root, json.loads((root / 'codec.json').read_text()))\n"
        "arrays = torch.load(root / 'batch.pt', weights_only=True)\n"
        "levels = (((16, 24), (8, 12)),) * 2\n"
        "out = codec.decode(EncodedBatch(arrays, levels))\n"
        "tensors = out.features + out.scores + out.frs\n"
        "print(hashlib.sha256(b''.join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest())\n"
    )
    runs = [subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
                           cwd=Path(__file__).parents[1]) for _ in range(2)]  # fmt: skip
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) > 60


def stack_arrays(samples: list[dict]) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in stack(samples, [((16, 24), (8, 12))] * 2).arrays.items()}


def test_saved_tables_decode_the_same(tmp_path: Path) -> None:
    codec = calibrated("frs")
    save_codec(codec, tmp_path, {"views": 8})
    import json

    again = load_codec(tmp_path, json.loads((tmp_path / "codec.json").read_text()))
    exact = output(1, [(16, 24), (8, 12)], 8, 6, 3)
    one, two = round_trip(codec, exact), round_trip(again, exact)
    assert all(torch.equal(a, b) for a, b in zip(one.features + one.scores, two.features + two.scores))
    assert again.settings == codec.settings


@pytest.mark.parametrize("bad", [{"type": "zip"}, {}, {"type": "frs", "stepp": 1}, {"type": "frs", "zstd": 40},
                                 {"type": "frs", "feature_step": -1}, {"type": "frs", "zstd": "9"}])  # fmt: skip
def test_settings_are_checked(bad: dict) -> None:
    with pytest.raises(ConfigError, match=r"cache\.codec"):
        codec_settings(bad)
