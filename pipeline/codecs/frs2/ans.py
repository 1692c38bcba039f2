"""Interleaved tANS (finite state entropy) with tables of whole numbers, vectorised over lanes.

A table gives each symbol a frequency f; the frequencies add up to 4096. Every lane has a state of 12 bits. One step of
a lane reads its symbol from the state, and then the next state from a few bits of the string that all lanes share. With
many lanes, a step is a dozen numpy calls, and numpy needs about 10 ns a symbol. Tables are built as in RFC 8878,
section 4.1.1.
Source: J. Duda, "Asymmetric numeral systems" (2013); Y. Collet, FiniteStateEntropy.
"""

from __future__ import annotations

import numpy as np

from pipeline.codecs.frs2.ans_bits import MASKS, BitReader

BITS = 12  # of a state
STATES = 1 << BITS
_STRIDE = STATES * 5 // 8 + 3  # odd, so the spread visits every state
MOST_LANES = 2048


class Tables:
    """Decoding and encoding tables of frequencies (T, 256), whole numbers >= 0 that add up to 4096 in each row."""

    def __init__(self, frequencies: np.ndarray) -> None:
        tables, symbols = frequencies.shape
        self.frequencies = frequencies.astype(np.int64)
        counts = self.frequencies.ravel()
        spread = np.empty((tables, STATES), np.uint8)
        spread[:, np.arange(STATES) * _STRIDE % STATES] = np.repeat(
            np.tile(np.arange(symbols, dtype=np.uint8), tables), counts
        ).reshape(tables, STATES)
        # The states of a symbol, in ascending order, are numbered f, f + 1, ..., 2 f - 1.
        states = np.argsort(spread, axis=1, kind="stable")
        firsts = self.frequencies.cumsum(axis=1) - self.frequencies
        ranks = np.tile(np.arange(STATES), tables) - np.repeat(firsts.ravel(), counts)
        numbers = (ranks + np.repeat(counts, counts)).reshape(tables, STATES)
        widths = BITS + 1 - np.frexp(numbers)[1]
        nexts = np.empty((tables, STATES), np.int32)
        np.put_along_axis(nexts, states, (((numbers << widths) - STATES) << 12 | widths).astype(np.int32), 1)
        # The first next state << 12 | the symbol << 4 | the number of bits to read.
        self._entries = (nexts | (spread.astype(np.int32) << 4)).ravel()
        # The encoder's states begin with STATES.
        self._states = states.ravel() + STATES
        self._offsets = (firsts - self.frequencies + STATES * np.arange(tables)[:, None]).ravel()
        # State plus this, over 2^16, is the number of bits to write, which is one less for states below f << widest.
        widest = BITS + 1 - np.frexp(self.frequencies)[1].astype(np.int64)
        self._widths = ((widest << 16) - (self.frequencies << widest)).ravel()

    def decode(self, tables: np.ndarray, lanes: np.ndarray, bits: BitReader, at: int) -> tuple[np.ndarray, int]:
        """Decode symbols (n,), each with its table. Symbol i belongs to lane i modulo their number.

        lanes: their states, replaced by the states afterwards. Return the symbols and the position in the bits.
        """
        bases = tables.astype(np.int64) * STATES
        found, widths = np.empty(len(tables), np.int32), np.empty(len(lanes) + 1, np.int64)
        for start in range(0, len(tables), len(lanes)):
            entry = found[start : start + len(lanes)]
            states, width = lanes[: len(entry)], widths[1 : len(entry) + 1]
            self._entries.take(bases[start : start + len(lanes)] + states, out=entry, mode="clip")
            np.bitwise_and(entry, 15, out=width)
            widths[0] = at  # so that the sums are positions
            ends = widths[: len(entry) + 1].cumsum()
            np.add(entry >> 12, bits.fields(ends[:-1], width), out=states)
            at = int(ends[-1])
            bits.check(at)
        return (found >> 4) & 255, at

    def encode(self, tables: np.ndarray, symbols: np.ndarray, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode symbols (n,) backwards. Return the values and widths of the fields that `decode` reads forwards.

        lanes: the states that `decode` ends with, replaced by those it starts with. No symbol has frequency 0.
        """
        at, count = tables * self.frequencies.shape[1] + symbols, len(lanes)
        offsets, widths = self._offsets.take(at), self._widths.take(at)
        states, spare, current = np.empty(len(at), np.int64), np.empty(count, np.int64), lanes + STATES
        for start in reversed(range(0, len(at), count)):
            width = widths[start : start + count]
            state, place = current[: len(width)], spare[: len(width)]
            states[start : start + count] = state
            np.add(width, state, out=width)
            np.right_shift(width, 16, out=width)
            np.right_shift(state, width, out=place)
            np.add(place, offsets[start : start + count], out=place)
            self._states.take(place, out=state, mode="clip")
        lanes[:] = current - STATES
        return states & MASKS.take(widths), widths


def lanes_for(symbols: int) -> int:
    """Return the number of lanes: a power of two, about a symbol in 16, at most 2048."""
    return 1 << min(max(symbols // 16, 1).bit_length() - 1, MOST_LANES.bit_length() - 1)
