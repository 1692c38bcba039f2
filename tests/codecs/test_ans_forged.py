"""Forged or damaged bytes and tables of the entropy coder end in one line, with little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codecs.frs.tokens import check_tokens
from pipeline.codecs.frs2.ans_model import AnsModel
from pipeline.codecs.frs2.ans_stream import decode
from pipeline.codecs.frs2.classes import CLASSES, class_sizes
from pipeline.errors import CorruptCache
from tests.helpers.ans_samples import coded, fitted, make, plain_model


def outcome(data: bytes, sizes: np.ndarray, model: AnsModel) -> np.ndarray | None:
    """The tokens of these bytes, or None where they are refused with one line."""
    try:
        found = decode(data, sizes, model)
    except CorruptCache as error:
        assert "\n" not in str(error) and len(str(error)) < 200
        return None
    check_tokens(found, int(sizes.sum()))
    assert len(found) == 0 or (found[-1] >> 8) > 0
    return found


def test_altered_bytes_are_refused_or_are_tokens() -> None:
    """Cuts and insertions are always refused. A flipped bit may give other valid tokens; crc32c finds it before."""
    rng = np.random.default_rng(0)
    for model in (fitted(), plain_model()):
        made = make(3, [(24, 28), (12, 14)])
        data, sizes = coded(made, model)
        for _ in range(150):
            at, bit = int(rng.integers(len(data))), 1 << int(rng.integers(8))
            outcome(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :], sizes, model)
            assert outcome(data[:at], sizes, model) is None
        assert outcome(data + b"\0", sizes, model) is None and outcome(b"", sizes, model) is None
        for first in (*range(data[0]), *range(data[0] + 1, 256)):
            assert outcome(bytes([first]) + data[1:], sizes, model) is None


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 5))
def test_random_bytes_are_refused_or_are_tokens(data: bytes, lanes: int) -> None:
    made = make(3, [(24, 28), (12, 14)])
    sizes = class_sizes(made.keys, fitted().top)
    outcome(bytes([lanes]) + data, sizes, fitted())


def test_memory_follows_the_bytes() -> None:
    """Bytes that declare billions of symbols are refused before anything of that size is made."""
    sizes, model = np.full(CLASSES, 2**40), plain_model()
    data = bytes([11]) + np.random.default_rng(1).bytes(4000)
    with pytest.raises(CorruptCache):
        decode(data, sizes, model)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCache, match=r"expected at least \d{11,} bits, found 32000"):
            decode(data, sizes, model)
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_tables_are_checked() -> None:
    model = fitted()
    tables = model.to_tables("feature")
    again = AnsModel.from_tables(tables, "feature")
    made = make(3, [(24, 28), (12, 14)])
    assert coded(made, again)[0] == coded(made, model)[0]
    assert all(table.dtype == np.int16 for table in tables.values())
    for name, change, message in (
        ("pairs", lambda t: t[:, :-1], r"feature_pairs: expected int16 of shape \(80, 256\), found int16 \(80, 255"),
        ("pairs", lambda t: t.astype(np.float32), "found float32"),
        ("pairs", lambda t: t * 0, "add up to 4096"),
        ("pairs", lambda t: np.roll(t, 1, axis=1) * 0 + np.eye(1, 256, 3, dtype=np.int16) * 4096, "add up to 4096"),
        ("counts", lambda t: t + np.eye(64, dtype=np.int16), "table feature_counts: expected rows"),
        ("counts", lambda t: t - np.where(np.arange(64) == t.argmax(1)[:, None], 1, 0).astype(np.int16), "add up"),
        ("classes", lambda t: t[:9], r"table feature_classes: expected int16 \(65,\)"),
        ("classes", lambda t: t * 0 - 1, "odds from 0 to 79"),
    ):
        with pytest.raises(ValueError, match=message):
            AnsModel.from_tables({**tables, f"feature_{name}": change(tables[f"feature_{name}"])}, "feature")
    with pytest.raises(KeyError):
        AnsModel.from_tables(tables, "score")
