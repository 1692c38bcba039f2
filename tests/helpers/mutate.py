"""Take a stored sample apart, alter it, and pack it again with right checksums and headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.cache import tar
from pipeline.cache.arrays import encode_chunk
from pipeline.cache.items import encode_item, join_items
from pipeline.cache.reader import ShardReader
from pipeline.codecs.frs2.ans_stream import encode
from pipeline.errors import CodecError
from pipeline.records import LevelShapes

EDGES = {
    "int32": (0, 1, -1, 255, 256, 511, 512, 2**31 - 1, -(2**31), 2**30, 0x7FFF00FF),
    "float32": (0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, -3e38, np.nan, np.inf, -np.inf, 1e-30),
    "uint8": (0, 1, 2, 3, 127, 128, 254, 255),
    "int64": (0, 1, -1, 2**62),
}
Arrays = dict[str, np.ndarray]


def unpack_sample(reader: ShardReader, index: int) -> Arrays:
    """Return the arrays of a sample as they are stored, decompressed, by name."""
    chunks = reader.chunks(index)
    return {name: array.copy() for name, array in reader.coded(index, chunks).items()}


def alter_symbols(codec: Any, arrays: Arrays, levels: LevelShapes, rng: np.random.Generator) -> Arrays:
    """Alter the symbols of a sample of frs2, and code them again; also its map, for other sizes of the classes."""
    if rng.random() < 0.3:
        arrays["frs"] = alter(arrays["frs"], rng)
    tokens = codec.read_sample(arrays, levels)  # may refuse an altered map
    sizes = codec.class_sizes(arrays["frs"], levels)
    for what in codec.kinds:
        altered = alter(tokens[f"{what}s"], rng)
        try:
            coded = encode(altered, sizes[what], codec.coders[what].model)
        except (CodecError, ValueError, IndexError, OverflowError):  # not symbols of this sample
            continue
        arrays[f"{what}s"] = np.frombuffer(coded, np.uint8)
    return arrays


def pack_sample(reader: ShardReader, index: int, arrays: Arrays, rng: np.random.Generator, most: int = 3) -> bytes:
    """Return the bytes of a sample's extent with up to `most` alterations of its arrays."""
    for _ in range(1 + int(rng.integers(most)) if most else 0):
        name = list(arrays)[rng.integers(len(arrays))]
        arrays[name] = alter(arrays[name], rng)
    head: Any = reader.head
    if hasattr(head, "specs"):
        return _pack_1(reader, index, arrays)
    items = [encode_item(item, arrays[item.name]) for item in head.items]
    if rng.random() < 0.05:  # a broken item
        at = int(rng.integers(len(items)))
        items[at] = _alter_bytes(items[at], rng)
    return tar.member(head.members(index)[0], join_items(items))


def _pack_1(reader: ShardReader, index: int, arrays: Arrays) -> bytes:
    """Pack a sample of version 1, where every array has the shape in the head."""
    head, parts = reader.head, list[bytes]()
    old = reader.chunks(index)
    for spec in head.specs:  # type: ignore[attr-defined]
        chunk = bytes(old[spec.name])
        if spec.name in arrays:
            flat = (
                np.resize(arrays[spec.name], spec.shape) if arrays[spec.name].size else np.zeros(spec.shape, spec.dtype)
            )
            chunk = encode_chunk(spec, flat.astype(spec.dtype))
        parts.append(tar.member(spec.chunk_name(index), chunk))
    return b"".join(parts)


def alter(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an array of the same data type and number of axes in which something is different."""
    return WAYS[rng.integers(len(WAYS))](array, rng)


def _set(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Set a few values to edges of their type."""
    found = array.copy()
    if found.size:
        for _ in range(1 + int(rng.integers(4))):
            found.flat[rng.integers(found.size)] = rng.choice(np.array(EDGES[found.dtype.name], found.dtype))
    return found


def _flip(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flip a few bits."""
    raw = bytearray(np.ascontiguousarray(array).tobytes())
    for _ in range(1 + int(rng.integers(8))) if raw else ():
        raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
    return np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)


def _add(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change some values by a little: it stays likely that the result is valid."""
    found = array.copy()
    if found.size:
        at = rng.integers(found.size, size=1 + int(rng.integers(16)))
        step = rng.integers(-2, 3, size=len(at)) * int(rng.choice([1, 256, 512]) if found.dtype.name == "int32" else 1)
        found.flat[at] = (found.flat[at] + step).astype(found.dtype)
    return found


def _splice(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move, repeat or remove a run of rows."""
    if len(array) < 2:
        return array
    first, last = sorted(int(n) for n in rng.integers(len(array), size=2))
    at = int(rng.integers(len(array)))
    run = array[first:last]
    return (
        np.concatenate([array[:at], run, array[at:]]),
        np.concatenate([array[:first], array[last:]]),
        np.concatenate([run, array[:first], array[last:]]),
        array[:at],
    )[rng.integers(4)]


def _noise(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace a run of bytes by random ones."""
    raw = bytearray(np.ascontiguousarray(array).tobytes())
    if raw:
        at, size = int(rng.integers(len(raw))), 1 + int(rng.integers(16))
        raw[at : at + size] = rng.bytes(len(raw[at : at + size]))
    return np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)


WAYS: tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], ...] = (_set, _flip, _add, _add, _splice, _noise)


def _alter_bytes(item: bytes, rng: np.random.Generator) -> bytes:
    found = _noise(np.frombuffer(item, np.uint8), rng).tobytes()
    return found[: rng.integers(len(found) + 1)] if rng.random() < 0.3 else found
