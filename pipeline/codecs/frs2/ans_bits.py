"""Fields of up to 32 bits in a string of bits, most significant bit first. All functions take whole arrays."""

from __future__ import annotations

import numpy as np

from pipeline.errors import CorruptCache

WIDEST = 32
MASKS = (1 << np.arange(WIDEST + 1, dtype=np.int64)) - 1
_WINDOW = 64  # a field of 32 bits that starts at any bit of a byte lies in the 8 bytes from there on
_SLACK = 4096  # bytes after the end that can be read before the end is checked


class BitWriter:
    """Collects fields, and packs them at the end."""

    def __init__(self) -> None:
        self._values: list[np.ndarray] = []
        self._widths: list[np.ndarray] = []

    def add(self, values: np.ndarray, widths: np.ndarray | int) -> None:
        """Append values (n,) >= 0, each with its width of 0 to 32 bits. A value must fit into its width."""
        self._values.append(values)
        self._widths.append(np.full(len(values), widths) if isinstance(widths, int) else widths)

    def add_flags(self, flags: np.ndarray) -> None:
        """Append flags (n,) bool, one bit each."""
        packed = np.packbits(flags)
        words = np.zeros(-(-len(flags) // WIDEST), ">u4")
        words.view(np.uint8)[: len(packed)] = packed
        widths = np.full(len(words), WIDEST)
        widths[len(flags) // WIDEST :] = len(flags) % WIDEST
        self.add(words.astype(np.int64) >> (WIDEST - widths), widths)

    @property
    def total(self) -> int:
        """The number of bits."""
        return sum(int(widths.sum()) for widths in self._widths)

    def to_bytes(self) -> bytes:
        """Return the bytes, with zeros in the last one's unused bits."""
        widths = np.concatenate(self._widths)
        kept = np.flatnonzero(widths)  # most fields are empty
        widths, values = widths[kept], np.concatenate(self._values)[kept]
        ends = widths.cumsum()
        total = int(ends[-1]) if len(ends) else 0
        starts = ends - widths
        # Each field spreads over at most two words of 32 bits. Fields share no bit, so sums of doubles are exact.
        spread = values << (2 * WIDEST - (starts & (WIDEST - 1)) - widths)
        words, count = starts // WIDEST, total // WIDEST + 2
        packed = np.bincount(words, (spread >> WIDEST) & MASKS[WIDEST], count)
        packed[1:] += np.bincount(words, spread & MASKS[WIDEST], count - 1)
        return packed.astype(">u4").tobytes()[: -(-total // 8)]


class BitReader:
    """Reads fields from any position. `end`: the number of bits."""

    def __init__(self, data: bytes) -> None:
        self._bytes = np.frombuffer(data + bytes(_SLACK + 8), np.uint8)
        self.end = 8 * len(data)
        from_each: np.ndarray = np.ndarray((len(data) + _SLACK,), ">u8", self._bytes.data, strides=(1,))
        self._windows = from_each.astype(np.uint64)  # the 64 bits from each byte on

    def read(self, at: int, widths: np.ndarray) -> tuple[np.ndarray, int]:
        """Read fields of 0 to 32 bits from bit `at` on. Return the values and the position behind them."""
        kept = np.flatnonzero(widths > 0)
        widths, values = widths[kept], np.zeros(len(widths), np.int64)
        ends = at + widths.cumsum()
        after = int(ends[-1]) if len(ends) else at
        self.check(after)
        values[kept] = self.fields(ends - widths, widths)
        return values, after

    def read_flags(self, at: int, count: int) -> tuple[np.ndarray, int]:
        """Read `count` bits as bool. Return them and the position behind them."""
        self.check(at + count)
        return np.unpackbits(self._bytes[at >> 3 : (at + count + 7) >> 3])[at & 7 :][:count] > 0, at + count

    def fields(self, starts: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return the fields at any positions up to 4,096 bytes behind the end. Both arrays are int64."""
        # A shift by 64 bits gives 0.
        before, after = (starts & 7).view(np.uint64), (_WINDOW - widths).view(np.uint64)
        found = self._windows.take(starts >> 3, mode="clip")
        found <<= before
        found >>= after
        return found.view(np.int64)

    def check(self, at: int) -> None:
        """Raise CorruptCache where a position lies behind the end."""
        if at > self.end:
            raise CorruptCache(f"entropy-coded symbols: expected at least {at} bits, found {self.end}")
