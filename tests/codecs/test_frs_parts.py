"""The parts of the frs codec: tokens, richness map, transforms, search of the step."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codecs.frs.map import BUCKETS, EMPTY, CodedMap, map_top
from pipeline.codecs.frs.step_search import find_step
from pipeline.codecs.frs.tokens import from_groups, from_tokens, log_class, symbol_order, to_groups, to_tokens
from pipeline.codecs.frs.transform import dct, klt
from pipeline.errors import CodecError


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


SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(SIDES, min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 2**31), st.floats(0, 1), st.booleans()
)
def test_tokens_hold_every_symbol(sizes: list, planes: int, seed: int, density: float, wide: bool) -> None:
    """Any planes survive, in the order that a stable sort gives."""
    rng = np.random.default_rng(seed)
    maps = [torch.from_numpy(rng.integers(0, 2**30, size) * (rng.random(size) < 0.7)) for size in sizes]
    expected = torch.from_numpy(rng.integers(-60, 60, (len(sizes), planes, 16)).astype(np.int16))
    groups = []
    for h, w in sizes:
        q = rng.integers(-(2**22) + 1, 2**22, (planes, -(-h // 4) * 4, -(-w // 4) * 4)) >> (0 if wide else 18)
        groups.append(to_groups(torch.from_numpy(q * (rng.random(q.shape) < density)).float()))
    order = symbol_order(expected, maps)
    keys = []
    for table, m in zip(expected, maps):
        whole = np.pad(m.numpy(), [(0, -side % 4) for side in m.shape])
        blocks = whole.reshape(whole.shape[0] // 4, 4, whole.shape[1] // 4, 4).sum(axis=(1, 3)).ravel()
        strength = log_class(torch.from_numpy(blocks)) - log_class(m.sum())
        keys.append((table.reshape(-1, 1) + strength[None]).numpy().ravel())
    by_sort = np.argsort(-np.concatenate(keys), kind="stable")
    assert np.array_equal(order.numpy(), by_sort)
    tokens = to_tokens(groups, order)
    assert tokens.dtype == torch.int32 and bool((tokens >= 0).all())
    padded = torch.cat([tokens, torch.zeros(7, dtype=torch.int32)])
    assert all(torch.equal(a, b) for a, b in zip(groups, from_tokens(padded, order, [g.shape for g in groups])))


def test_groups_are_planes_in_another_order() -> None:
    planes = torch.randn(3, 8, 12)
    groups = to_groups(planes)
    assert groups.shape == (3, 16, 6) and torch.equal(from_groups(groups, 8, 12), planes)
    assert torch.equal(groups[:, 5, 4], planes[:, 4 + 1, 4 + 1])  # block 4: second row, second column; f = 4 + 1


@settings(max_examples=100, deadline=None)
@given(st.lists(SIDES, min_size=1, max_size=3), st.integers(0, 2**31), st.sampled_from([16, 40, 99, 255]))
def test_map_codes(sizes: list, seed: int, top: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for n, size in enumerate(sizes):
        m = torch.rand(size, generator=generator) ** 8 * 10.0 ** (-6 * n)
        m[torch.rand(size, generator=generator) < 0.2] = 0
        maps.append(m)
    coded = CodedMap.encode(maps, top)
    again = CodedMap.from_bytes(torch.cat([coded.to_bytes(), torch.ones(5, dtype=torch.uint8)]), tuple(sizes), top)
    assert torch.equal(again.exponents, coded.exponents)
    assert all(torch.equal(a, b) for a, b in zip(again.codes, coded.codes))
    exponents = coded.exponents.tolist()
    for m, back, whole, bucket, exponent in zip(maps, coded.floats(), coded.integers(), coded.buckets(), exponents):
        assert (exponent == EMPTY) == bool((m == 0).all())
        assert ((back**0.25 - m**0.25).abs() <= (0.51 / top) * m.max() ** 0.25 * 2**0.25 + 1e-7).all()
        assert bool(((back > 0) == (bucket > 0)).all()) and bool((bucket < BUCKETS).all())
        if exponent != EMPTY:
            assert torch.allclose(
                whole.double() * 2.0 ** -(30 + exponent), back.double(), rtol=1e-6, atol=1e-9 * float(m.max())
            )
    one = CodedMap.encode([torch.tensor([[1.0, 0.5, 0.0]])], top)
    assert one.exponents.tolist() == [0] and one.floats()[0][0, 0] == 1 and one.buckets()[0][0, 0] == BUCKETS - 1


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
