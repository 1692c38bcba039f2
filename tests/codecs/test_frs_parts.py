"""The parts of the frs codec: tokens, richness map, transforms, search of the step."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codecs.frs.find import find_symbols
from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.map_codes import map_top
from pipeline.codecs.frs.map_values import BUCKETS, EMPTY
from pipeline.codecs.frs.order import ExpectedSizes, SymbolOrder
from pipeline.codecs.frs.step_search import FAR, REFINEMENTS, Located, find_step, locate_step, refine_step
from pipeline.codecs.frs.tokens import find_nonzero, from_tokens, rank_symbols, to_planes, to_tokens
from pipeline.codecs.frs.transform import dct, klt
from pipeline.codecs.frs2.classes import group_histograms, key_histogram
from pipeline.codecs.frs2.strengths import read_strengths
from pipeline.errors import CodecError
from tests.helpers.symbols import coded_maps, groups_of, in_plane_order, integers, symbol_order


def powers(power: float, tried: list[float]) -> list[float]:
    return [step**power for step in tried]


def test_a_quality_out_of_reach_is_refused() -> None:
    with pytest.raises(CodecError, match=r"cannot reach gradient error 0\.01 of the features \(best 0\.02"):
        find_step("feature", lambda tried: [0.02 + step for step in tried], [0.1, 0.2], 0.01)
    assert find_step("feature", lambda tried: [0.0 for _ in tried], [0.1, 0.2], 0.01) == 0.2
    for power in (0.7, 1.0):
        errors = partial(powers, power)
        for start, target in (([1e-4, 1], 0.03), ([1e-6, 1e-5], 0.1)):
            found = find_step("feature", errors, start, target)
            assert found**power <= target and found == pytest.approx(target ** (1 / power), rel=0.15)


@pytest.mark.parametrize("power", [0.4, 0.8, 1.0])
@pytest.mark.parametrize("easier", [0.7, 1.0, 1.3])
def test_a_step_located_on_a_few_views_is_close_to_that_of_all(power: float, easier: float) -> None:
    target, calls = 0.03, list[int]()

    def all_views(tried: list[float]) -> list[float]:
        calls.append(len(tried))
        return [step**power * (1 + step) for step in tried]  # not quite a power of the step

    located = locate_step(lambda tried: [easier * error for error in all_views(tried)], [0.001, 0.5], target)
    assert located is not None and located.slope == pytest.approx(power, rel=0.2)
    (error,) = all_views([located.step])
    assert easier * error == pytest.approx(target, rel=0.15)
    calls.clear()
    found = refine_step(all_views, located, target)
    assert found is not None and calls in ([2], [2, 2]), "two steps at a time, at most twice"
    assert found**power * (1 + found) == pytest.approx(target, rel=0.08)


def test_a_target_between_the_first_steps_is_located_without_more() -> None:
    calls: list[list[float]] = []

    def errors(tried: list[float]) -> list[float]:
        calls.append(tried)
        return [0.4 * step for step in tried]

    located = locate_step(errors, [0.02, 0.2], 0.03)

    assert calls == [[0.02, 0.2]] and located is not None
    assert located.step == pytest.approx(0.03 / 0.4, rel=0.08) and located.slope == pytest.approx(1.0)


def uneven(low: float, high: float, tried: list[float]) -> list[float]:
    return [low * min(tried), high * max(tried)]


def test_an_uneven_error_moves_a_refined_step_little() -> None:
    """Both steps take part, so that chance in one of them does not decide."""
    located, target = Located(0.03, 1.0), 0.03
    for high, low in ((1.1, 1.0), (1.0, 0.9), (1.05, 0.95)):
        found = refine_step(partial(uneven, low, high), located, target)
        assert found == pytest.approx(0.03, rel=0.12)


def test_a_step_that_cannot_be_located_is_left_to_all_views() -> None:
    assert locate_step(lambda tried: [0.0 for _ in tried], [0.01, 0.1], 0.03) is None
    assert locate_step(lambda tried: [0.03 * FAR + step for step in tried], [0.01, 0.1], 0.03) is None
    assert locate_step(lambda tried: [0.029 for _ in tried], [0.01, 0.1], 0.03) is None
    calls: list[float] = []

    def far(tried: list[float]) -> list[float]:
        calls.append(min(tried))
        return [0.1 for _ in tried]

    assert refine_step(far, Located(0.5, 1.0), 0.03) is None
    assert len(calls) == REFINEMENTS and sorted(calls, reverse=True) == calls


SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(SIDES, min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2**31),
    st.floats(0, 1),
    st.booleans(),
)
def test_tokens_hold_every_symbol(sizes: list, planes: int, batch: int, seed: int, density: float, wide: bool) -> None:
    """Any planes survive, in the order that a stable sort gives."""
    rng = np.random.default_rng(seed)
    maps = coded_maps(sizes, batch, rng)
    expected = rng.integers(-60, 60, (len(sizes), planes, 16)).astype(np.int16)
    order = SymbolOrder(ExpectedSizes.from_table(expected, torch.device("cpu")), maps.strengths)
    levels = []
    for h, w in maps.canvas.padded:
        q = rng.integers(-(2**22) + 1, 2**22, (batch, planes, h, w)) >> (0 if wide else 18)
        levels.append(torch.from_numpy(q * (rng.random(q.shape) < density)).float())
    rows = to_tokens(levels, order)
    for sample, tokens in enumerate(rows):
        assert tokens.dtype == torch.int32 and bool((tokens >= 0).all())
        reference = symbol_order(expected, integers(maps, sample))
        found = in_plane_order(tokens.numpy(), reference)
        assert np.array_equal(found, groups_of([level[sample] for level in levels]))
    padded = torch.nn.utils.rnn.pad_sequence([torch.cat([row, row.new_zeros(7)]) for row in rows], batch_first=True)
    ((symbols, values),) = from_tokens([padded], [order])
    again = to_planes(symbols, values, maps.canvas)
    assert all(torch.equal(a, b) for a, b in zip(levels, again, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.lists(SIDES, min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 2**31), st.integers(1, 9))
def test_ranks_and_counts_by_key_are_those_of_a_sort(sizes: list, batch: int, seed: int, at_once: int) -> None:
    """For all symbols of a batch, however many of them are ranked at once."""
    rng = np.random.default_rng(seed)
    maps = coded_maps(sizes, batch, rng)
    expected = rng.integers(-60, 60, (len(sizes), 2, 16)).astype(np.int16)
    order = SymbolOrder(ExpectedSizes.from_table(expected, torch.device("cpu")), maps.strengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.codecs.frs.ranks.RANKED", 7 * at_once)
        ranked = rank_symbols([torch.ones(batch, 2, *padded) for padded in maps.canvas.padded], order)
    symbols = 32 * len(maps.canvas.block_level)
    assert ranked.ranks.tolist() == list(range(symbols)) * batch and not ranked.gaps.any()
    assert ranked.counts == ranked.tokens == [symbols] * batch
    groups = group_histograms(expected)
    for sample, counts in enumerate(order.key_counts().numpy()):
        blocks = read_strengths(maps.to_bytes()[sample].numpy(), maps.canvas.own[sample], maps.top)
        wanted = key_histogram(groups, blocks)
        begun = int(np.flatnonzero(counts)[0])
        assert int(expected.max()) - begun == wanted.highest
        assert np.array_equal(np.trim_zeros(counts), np.trim_zeros(wanted.counts))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(SIDES, min_size=2, max_size=2), min_size=1, max_size=4), st.integers(0, 2**31))
def test_a_batch_gives_each_sample_its_own_symbols(own: list, seed: int) -> None:
    """Samples of different grids share a canvas. Ranks lead to the symbols that each sample has alone."""
    rng = np.random.default_rng(seed)
    expected = rng.integers(-9, 9, (2, 3, 16)).astype(np.int16)
    table = ExpectedSizes.from_table(expected, torch.device("cpu"))
    alone = [coded_maps(sizes, 1, rng) for sizes in own]
    rows = [torch.cat([maps.to_bytes()[0], torch.ones(5, dtype=torch.uint8)]) for maps in alone]
    grids = tuple(tuple(sizes) for sizes in own)
    together = BatchMaps.from_bytes(
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), grids, torch.tensor(grids), 99
    )
    order = SymbolOrder(table, together.strengths)
    for number, maps in enumerate(alone):
        assert torch.equal(together.exponents[number], maps.exponents[0])
        for a, b, (h, w) in zip(together.floats, maps.floats, grids[number]):
            assert torch.equal(a[number, :h, :w], b[0]) and int((a[number] > 0).sum()) == int((b > 0).sum())
        reference = symbol_order(expected, integers(maps, 0))
        numbers = torch.arange(1, len(reference) + 1).repeat(len(own), 1)
        (symbols,) = find_symbols([order], [numbers])
        plane, frequency, block = (part[number] for part in (symbols.plane, symbols.frequency, symbols.block))
        level = together.canvas.block_level[block]
        first = torch.tensor([0, together.canvas.blocks[0][0] * together.canvas.blocks[0][1]])[level]
        across = torch.tensor([w for _, w in together.canvas.blocks])[level]
        y, x = (block - first) // across, (block - first) % across
        sides = torch.tensor([[-(-h // 4), -(-w // 4)] for h, w in grids[number]])
        counts = sides.prod(dim=1)
        start = torch.tensor([0, 3 * 16 * int(counts[0])])[level]
        found = start + (plane * 16 + frequency) * counts[level] + y * sides[level, 1] + x
        assert np.array_equal(found.numpy(), reference)


@pytest.mark.parametrize("planes", [1, 16, 17])
def test_a_large_tensor_is_transformed_in_parts(planes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, planes, 32, 24, generator=torch.Generator().manual_seed(3))
    wanted, back = dct(x), dct(x, inverse=True)
    monkeypatch.setattr("pipeline.codecs.frs.transform.LARGE", 0)
    monkeypatch.setattr("pipeline.codecs.frs.transform.PART", 2 * 3 * 32 * 24)  # three planes of both samples
    for found, whole in ((dct(x), wanted), (dct(x, inverse=True), back)):
        assert found.shape == x.shape and torch.allclose(found, whole, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_nonzero_values_are_found(eights: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=8 * eights) * (rng.random(8 * eights) < density)
    assert np.array_equal(find_nonzero(torch.from_numpy(values)).numpy(), np.flatnonzero(values))


@settings(max_examples=100, deadline=None)
@given(st.lists(SIDES, min_size=1, max_size=3), st.integers(0, 2**31), st.sampled_from([16, 40, 99, 255]))
def test_map_codes(sizes: list, seed: int, top: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for n, size in enumerate(sizes):
        m = torch.rand(size, generator=generator) ** 8 * 10.0 ** (-6 * n)
        m[torch.rand(size, generator=generator) < 0.2] = 0
        maps.append(m)
    coded = BatchMaps.encode([m[None] for m in maps], top)
    row = torch.cat([coded.to_bytes()[0], torch.ones(5, dtype=torch.uint8)])
    again = BatchMaps.from_bytes(row[None], (tuple(sizes),), torch.tensor([sizes]), top)
    assert torch.equal(again.exponents, coded.exponents) and torch.equal(again.codes, coded.codes)
    exponents = coded.exponents[0].tolist()
    parts = zip(maps, coded.floats, integers(coded, 0), coded.buckets, exponents, strict=True)
    for m, (back,), whole, (bucket,), exponent in parts:
        assert (exponent == EMPTY) == bool((m == 0).all())
        assert ((back**0.25 - m**0.25).abs() <= (0.51 / top) * m.max() ** 0.25 * 2**0.25 + 1e-7).all()
        assert bool(((back > 0) == (bucket > 0)).all()) and bool((bucket < BUCKETS).all())
        if exponent != EMPTY:
            exact = torch.from_numpy(whole).double() * 2.0 ** -(30 + exponent)
            assert torch.allclose(exact, back.double(), rtol=1e-6, atol=1e-9 * float(m.max()))
    one = BatchMaps.encode([torch.tensor([[[1.0, 0.5, 0.0]]])], top)
    assert one.exponents.tolist() == [[0]] and one.floats[0][0, 0, 0] == 1 and one.buckets[0][0, 0, 0] == BUCKETS - 1


def test_the_map_follows_the_quality() -> None:
    tops = [map_top(q) for q in (0.001, 0.01, 0.03, 0.1, 0.5)]
    assert tops == sorted(tops, reverse=True) and tops[0] == 255 and tops[-1] >= 16


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
