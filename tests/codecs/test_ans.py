"""The entropy coder of frs2: any tokens survive, in few bytes, and the decoder of docs/format.md agrees."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc

from pipeline.codecs.frs2.ans_fit import fit
from pipeline.codecs.frs2.ans_model import AnsModel
from pipeline.codecs.frs2.ans_stream import decode, encode
from pipeline.codecs.frs2.classes import CLASSES, class_sizes, group_histograms, key_histogram
from pipeline.codecs.frs2.strengths import read_strengths, uniform_strengths
from pipeline.errors import CodecError
from tests.helpers.ans_samples import LARGEST, coded, fitted, make, make_tokens, plain_model
from tests.helpers.paths import ROOT
from tests.helpers.symbols import coded_maps, integers

GOLDEN = (
    "011547076fb13a817037329db5267f422929b4f6614a2e9290a42108529084124a501485210a421096188c218c84210a"
    "521063210a4f634eb6dfd4e75f7d0b5237fa66d57ea6d7dd876547ffff52a29a2b3a121fb1ce5be0c3bfb003fe00f0"
)
SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(SIDES, min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 2**31),
    st.sampled_from([-1000.0, -20.0, 0.0, 30.0, 90.0]),
    st.booleans(),
    st.booleans(),
)
def test_any_tokens_survive(
    sizes: list, planes: int, seed: int, strength: float, wide: bool, by_calibration: bool
) -> None:
    made = make(seed, sizes, planes, strength, wide)
    model = fitted() if by_calibration else plain_model()
    data, classes = coded(made, model)
    found = decode(data, classes, model)
    assert found.dtype == np.int32 and np.array_equal(found, made.tokens)
    padded = np.concatenate([made.tokens, np.zeros(9, np.int32)])
    assert encode(padded, classes, model) == data


def test_tokens_far_from_each_other_survive() -> None:
    """Gaps beyond a filler, beyond an escape's limit, and in the last class."""
    sizes = np.zeros(CLASSES, np.int64)
    sizes[[0, 7, 63]] = 3, 2**20, 2**24
    at = np.array([1, 2, 3, 260, 2**20 + 2, 2**20 + 3, 2**24, 2**24 + 2**20 + 2])
    tokens = make_tokens(np.diff(at, prepend=-1) - 1, np.arange(8) - 9)
    for model in (fitted(), plain_model()):
        data = encode(tokens, sizes, model)
        assert len(data) < 200 and np.array_equal(decode(data, sizes, model), tokens)
    with pytest.raises(CodecError, match="tokens reach symbol 17825795, but the classes have 17825794"):
        encode(tokens, sizes - (np.arange(CLASSES) == 63), fitted())


@settings(max_examples=40, deadline=None)
@given(st.lists(SIDES, min_size=1, max_size=3), st.integers(0, 2**31), st.integers(-80, 80))
def test_class_sizes_need_no_order(sizes: list, seed: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    maps = coded_maps(sizes, 1, rng)
    expected = rng.integers(-90, 90, (len(sizes), 3, 16)).astype(np.int16)
    strengths = read_strengths(maps.to_bytes()[0].numpy(), maps.canvas.own[0], maps.top)
    found = class_sizes(key_histogram(group_histograms(expected), strengths), top)
    bounds = [round(2 ** (k / 2)) for k in range(110)]
    keys = []
    for table, m in zip(expected, integers(maps, 0)):
        whole = np.pad(m, [(0, -side % 4) for side in m.shape])
        sums = whole.reshape(whole.shape[0] // 4, 4, whole.shape[1] // 4, 4).sum(axis=(1, 3)).ravel()
        log, of_level = np.searchsorted(bounds, sums, "right"), np.searchsorted(bounds, whole.sum(), "right")
        keys.append((table.reshape(-1, 1).astype(int) + log - of_level).ravel())
    classes = np.clip(top - np.concatenate(keys), 0, CLASSES - 1)
    assert np.array_equal(found, np.bincount(classes, minlength=CLASSES))


@pytest.mark.parametrize("sizes", [[(1, 1)], [(4, 8), (2, 4)], [(13, 7), (7, 4), (4, 2)]])
def test_the_host_finds_the_strengths_of_the_device(sizes: list) -> None:
    """A device orders the symbols by them, and the host counts the symbols of each class."""
    rng = np.random.default_rng(5)
    for maps in (coded_maps(sizes, 1, rng), coded_maps(sizes, 1, rng)):
        own = maps.canvas.own[0]
        for device, host in (
            (maps, read_strengths(maps.to_bytes()[0].numpy(), own, maps.top)),
            (maps.uniform, uniform_strengths(own)),
        ):
            assert np.array_equal(np.concatenate(host), device.strength[0].numpy())


def test_bytes_are_near_the_entropy_and_below_zstd() -> None:
    made = [make(seed, [(80, 96), (40, 48)], 8) for seed in range(100, 108)]
    model = fit(made[:6])
    for each in made[6:]:
        data, sizes = coded(each, model)
        groups = np.repeat(np.arange(CLASSES), sizes)
        values = np.zeros(len(groups), np.int64)
        signed = each.tokens >> 8
        at = ((each.tokens & 255).astype(np.int64) + 1).cumsum() - 1
        values[at[signed > 0]] = signed[signed > 0]
        entropy = 0.0
        for number in range(CLASSES):
            counts = np.unique(values[groups == number], return_counts=True)[1]
            entropy -= float((counts * np.log2(counts / counts.sum())).sum()) / 8 if len(counts) else 0
        zstd = len(Blosc("zstd", 8, Blosc.SHUFFLE).encode(each.tokens))
        assert len(data) < 1.04 * entropy and len(data) < 0.9 * zstd, (len(data), entropy, zstd)


def test_views_unlike_the_calibration_choose_their_own_tables() -> None:
    """Steps twice as coarse or as fine as calibrated cost at most 2% more than a fit to them."""
    grids = [(80, 96), (40, 48)]
    usual = fit([make(seed, grids, 8) for seed in range(6)])
    for strength in (-4.0, 4.0):
        others = [make(seed, grids, 8, strength) for seed in range(10, 16)]
        own = fit(others[:5])
        assert len(coded(others[5], usual)[0]) < 1.02 * len(coded(others[5], own)[0])


def test_bytes_are_golden() -> None:
    """Of whole numbers alone: the bytes of a sample never change."""
    n = np.arange(40)
    gaps, values = n * n * 7919 % 23 + 300 * (n == 17), (n + 1) * 2654435761 % 37 - 18 + 2**22 * (n == 5)
    values = np.where(values == 0, 40, np.minimum(values, LARGEST))
    sizes = np.zeros(CLASSES, np.int64)
    sizes[[3, 20, 63]] = 100, 150, 2000
    tokens = make_tokens(gaps, values)
    data = encode(tokens, sizes, plain_model())
    assert data.hex() == GOLDEN
    assert np.array_equal(decode(data, sizes, plain_model()), tokens)


def of_page() -> Callable[..., list[int]]:
    """The decoder of docs/format.md, which is plain Python."""
    text = (ROOT / "docs/format.md").read_text()
    found = re.search(r"<!-- entropy decoder -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found
    namespace: dict[str, Any] = {}
    exec(compile(found[1], "format.md:entropy", "exec"), namespace)
    return namespace["decode_tokens"]


@pytest.mark.parametrize("model", [fitted, plain_model])
def test_the_page_decodes_the_same(model: Callable[[], AnsModel]) -> None:
    """Many lanes, no symbol at all, numbers in full."""
    lanes = []
    for seed, strength, wide in ((0, 6.0, False), (1, -1000.0, False), (2, -10.0, True)):
        made = make(seed, [(12, 16), (6, 8)], 3, strength, wide)
        data, sizes = coded(made, model())
        lanes.append(1 << data[0])
        tables = {name: table.tolist() for name, table in model().to_tables("score").items()}
        assert of_page()(data, sizes.tolist(), tables, "score") == made.tokens.tolist()
    assert lanes[0] >= 8 and lanes[1] == 1
