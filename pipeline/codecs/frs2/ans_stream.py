"""Entropy-code the sorted tokens of one tensor of one sample, given the sizes of its classes.

The bytes: log2 of the number of lanes W, then bits, most significant first. docs/format.md describes them.

1. W states of 12 bits. 2. The bucket of every class's count, in tANS. 3. The low bits of the counts. 4. For every
non-zero symbol a pair (bucket of the gap, bucket of the size), in tANS. 5. The rest: lengths, low bits, signs.
The first 12 W bits of the rest are not in the string. They are the states that the lanes end with, so many lanes cost
no bytes.

A pair is one table look-up for each non-zero symbol. Gaps and sizes apart, and every symbol of dense classes, would be
2.2 to 2.7 look-ups, for about the same bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.budget import BUDGET, excess
from pipeline.codecs.frs.tokens import LARGEST
from pipeline.codecs.frs2.ans import BITS, MOST_LANES, lanes_for
from pipeline.codecs.frs2.ans_bits import WIDEST, BitReader, BitWriter
from pipeline.codecs.frs2.ans_model import ESCAPE, AnsModel, odds_of
from pipeline.codecs.frs2.ans_symbols import FIRSTS, FULL, SIDE, WIDTHS, Symbols, bucket, lengths, unit
from pipeline.errors import CorruptCache

LENGTH = 5  # bits of the length of a number that is written in full
# Of the buckets of a pair, by unit: the width of the low bits, and the least number where buckets begin with 0 or 1.
_UNITS = np.arange(1 + int(unit(np.zeros(1, np.int64))[0]))[:, None]
_WIDTHS = WIDTHS[:SIDE] + _UNITS
_LEAST = (FIRSTS[:SIDE] << _UNITS) + np.arange(2)[:, None, None]
_LEAST[..., FULL] = 0


def encode(tokens: np.ndarray, classes: np.ndarray, model: AnsModel) -> bytes:
    """Encode the tokens (T,) int32 of frs/tokens.py. classes: `class_sizes` at `model.top`."""
    return encode_symbols(Symbols.of(tokens, classes), classes, model)


def encode_symbols(symbols: Symbols, classes: np.ndarray, model: AnsModel) -> bytes:
    """Encode symbols. classes: as in `encode`."""
    odds = odds_of(classes, symbols.counts)
    tables, units = np.repeat(odds, symbols.counts), np.repeat(unit(odds), symbols.counts)
    pairs = symbols.pairs(units)
    pairs[model.pairs[tables, pairs] == 0] = ESCAPE
    rest = _write_rest(symbols, pairs, units)
    first = np.full(lanes_for(len(pairs)), BITS)
    hidden, total = int(first.sum()), rest.total
    rest.add(np.zeros(len(first), np.int64), BITS)  # where the rest is shorter than the states
    reader = BitReader(rest.to_bytes())
    lanes, _ = reader.read(0, first)

    coded_pairs = model.coder.encode(tables, pairs, lanes)
    present = np.flatnonzero(classes)
    counted = np.where(model.dense, classes - symbols.counts, symbols.counts)[present]
    buckets = bucket(counted)
    coded_counts = model.coder.encode(model.count_tables(classes)[present], buckets, lanes)
    out = BitWriter()
    out.add(lanes, BITS)
    out.add(*coded_counts)
    out.add(counted - FIRSTS[buckets], WIDTHS[buckets])
    out.add(*coded_pairs)
    out.add(*_copy(reader, hidden, total))
    return bytes([len(lanes).bit_length() - 1]) + out.to_bytes()


def decode(data: bytes, classes: np.ndarray, model: AnsModel) -> np.ndarray:
    """Decode the tokens (T,) int32. Raise CorruptCache where `encode` never makes such bytes for these classes."""
    if not data or 1 << data[0] > MOST_LANES:
        found = f"2^{data[0]}" if data else "no bytes"
        raise CorruptCache(f"entropy-coded symbols: expected up to {MOST_LANES} lanes, found {found}")
    bits = BitReader(data[1:])
    lanes, at = bits.read(0, np.full(1 << data[0], BITS))
    counts, at = _read_counts(bits, at, lanes, classes, model)
    total, hidden = int(counts.sum()), BITS * len(lanes)
    if len(lanes) != lanes_for(total):
        raise CorruptCache(f"entropy-coded symbols: {len(lanes)} lanes do not fit {total} symbols")
    bits.check(at + total - hidden)  # each symbol has a sign, so the bytes limit the memory
    wrong = excess("entropy-coded symbols", total, BUDGET.tokens)
    if wrong is not None:
        raise CorruptCache(wrong)
    odds = odds_of(classes, counts)
    pairs, at = model.coder.decode(np.repeat(odds, counts), lanes, bits, at)
    rest = BitWriter()
    rest.add(lanes, BITS)
    rest.add(*_copy(bits, at, bits.end))
    reader = BitReader(rest.to_bytes())
    symbols, used = _read_rest(reader, pairs, counts, np.repeat(unit(odds), counts))
    unused = bits.end - at - max(0, used - hidden)
    if not 0 <= unused < 8 or _copy(reader, used, reader.end)[0].any():
        raise CorruptCache(f"entropy-coded symbols: expected fewer than 8 zero bits at the end, found {unused} bits")
    return symbols.to_tokens(classes)


def _copy(reader: BitReader, at: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits from `at` to `end` as fields and their widths; none where `at` is not before `end`."""
    starts = np.arange(at, end, WIDEST)
    widths = np.minimum(end - starts, WIDEST)
    return reader.fields(starts, widths), widths


def _read_counts(
    bits: BitReader, at: int, lanes: np.ndarray, classes: np.ndarray, model: AnsModel
) -> tuple[np.ndarray, int]:
    """Read the number of non-zero symbols of every class. Return it and the position behind them."""
    present = np.flatnonzero(classes)
    buckets, at = model.coder.decode(model.count_tables(classes)[present], lanes, bits, at)
    low, at = bits.read(at, WIDTHS[buckets])
    counts = np.zeros(len(classes), np.int64)
    counts[present] = FIRSTS[buckets] + low
    if (counts > classes).any():
        raise CorruptCache("entropy-coded symbols: a count exceeds the size of its class")
    return np.where(model.dense, classes - counts, counts), at


def _write_rest(symbols: Symbols, pairs: np.ndarray, units: np.ndarray) -> BitWriter:
    """Write what the pairs leave open: lengths of full gaps and sizes, low bits of gaps, of sizes, and signs."""
    gaps, sizes = _Numbers.of(pairs >> 4, units, 0), _Numbers.of(pairs & (SIDE - 1), 0, 1)
    out = BitWriter()
    for numbers, values in ((gaps, symbols.gaps), (sizes, symbols.sizes)):
        numbers.widths[numbers.full] = lengths(values[numbers.full])
        out.add(numbers.widths[numbers.full], LENGTH)
    out.add(symbols.gaps - gaps.firsts, gaps.widths)
    out.add(symbols.sizes - sizes.firsts, sizes.widths)
    out.add_flags(symbols.negative)
    return out


def _read_rest(reader: BitReader, pairs: np.ndarray, counts: np.ndarray, units: np.ndarray) -> tuple[Symbols, int]:
    """Read what the pairs leave open. Return the symbols and the position behind them."""
    at, fields = 0, (_Numbers.of(pairs >> 4, units, 0), _Numbers.of(pairs & (SIDE - 1), 0, 1))
    for numbers in fields:
        numbers.widths[numbers.full], at = reader.read(at, np.full(len(numbers.full), LENGTH))
    found = []
    for numbers in fields:
        low, at = reader.read(at, numbers.widths)
        found.append(numbers.firsts + low)
    negative, at = reader.read_flags(at, len(pairs))
    gaps, sizes = found
    if len(sizes) and not 1 <= sizes.min() <= sizes.max() <= LARGEST:
        raise CorruptCache(f"entropy-coded symbols: expected values of 1 to {LARGEST}, found up to {sizes.max()}")
    return Symbols(counts, gaps, sizes, negative), at


class _Numbers(NamedTuple):
    """The least number of each bucket, the widths of the low bits, and the indices of numbers written in full."""

    firsts: np.ndarray
    widths: np.ndarray
    full: np.ndarray

    @classmethod
    def of(cls, buckets: np.ndarray, units: np.ndarray | int, least: int) -> _Numbers:
        """units: log2 of the unit of the buckets. least: the number that bucket 0 begins with."""
        at = buckets + units * SIDE
        return cls(_LEAST[least].take(at), _WIDTHS.take(at), np.flatnonzero(buckets == FULL))
