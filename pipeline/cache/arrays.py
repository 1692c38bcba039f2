"""One chunk of one zarr array, written and read without zarr-python.

zarr-python costs 3-5 ms a sample, these functions 0.2 ms, for the very same bytes (tests/cache/test_format.py holds
that in both directions). First axis = sample, one chunk = one sample; pipeline of a chunk: little-endian bytes,
Blosc (zstd, byte shuffle) where the array is compressed, crc32c. Source: zarr v3 specification, codecs `bytes`,
`blosc`, `crc32c`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from numcodecs import Blosc

from pipeline.errors import CodecError, CorruptCache

SUPPORTED = ("uint8", "uint16", "int32", "int64", "float32")
LONGEST = 2**31 - 1  # of an axis; Blosc holds no more in a chunk


@dataclass(frozen=True)
class ArraySpec:
    """One array of a shard: `shape` of the largest sample, numpy dtype name, zstd level (None: stored plain)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    level: int | None = None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def chunk_name(self, index: int) -> str:
        """The zarr key, and tar member, of one sample's chunk."""
        return "/".join([self.name, "c", str(index)] + ["0"] * len(self.shape))

    def metadata(self, samples: int) -> dict[str, Any]:
        """The array's zarr.json."""
        return array_metadata((samples, *self.shape), (1, *self.shape), self.dtype, ("sample", *self.dims), self.level)


def array_metadata(
    shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str, dims: tuple[str, ...], level: int | None
) -> dict[str, Any]:
    """zarr.json of a zarr v3 array with a regular chunk grid."""
    size = np.dtype(dtype).itemsize
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if size == 1:
        codecs = [{"name": "bytes"}]
    if level is not None:
        settings = {"typesize": size, "cname": "zstd", "clevel": level, "shuffle": "shuffle", "blocksize": 0}
        codecs.append({"name": "blosc", "configuration": settings})
    codecs.append({"name": "crc32c"})
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.startswith("float") else 0,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": list(dims),
        "storage_transformers": [],
    }


def spec_from_metadata(name: str, meta: dict[str, Any]) -> ArraySpec:
    """Inverse of ArraySpec.metadata; anything that this format never writes is refused."""
    try:
        shape = tuple(meta["shape"][1:])
        blosc = [c["configuration"]["clevel"] for c in meta["codecs"] if c["name"] == "blosc"]
        spec = ArraySpec(name, shape, meta["data_type"], tuple(meta["dimension_names"][1:]), *blosc)
        whole = all(type(n) is int and 0 < n <= LONGEST for n in (meta["shape"][0], *shape))
        same = whole and spec.dtype in SUPPORTED and spec.metadata(meta["shape"][0]) == meta
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        same = False
    if not same:
        raise CorruptCache(f"array {name}: its zarr.json is not one that this format writes")
    return spec


def encode_chunk(spec: ArraySpec, sample: np.ndarray) -> bytes:
    """Bytes of one sample's chunk; a sample smaller than `spec.shape` is padded with zeros at the end of each axis."""
    if sample.dtype != np.dtype(spec.dtype) or any(n > m for n, m in zip(sample.shape, spec.shape)):
        raise CodecError(
            f"array {spec.name}: expected {spec.dtype} within {spec.shape}, found {sample.dtype} {sample.shape}"
        )
    if sample.shape != spec.shape:
        padded = np.zeros(spec.shape, spec.dtype)
        padded[tuple(slice(0, n) for n in sample.shape)] = sample
        sample = padded
    data = np.ascontiguousarray(sample, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    if spec.level is None:
        payload = data.tobytes()
    else:
        payload = bytes(Blosc(cname="zstd", clevel=spec.level, shuffle=Blosc.SHUFFLE).encode(data))
    return payload + crc32c(payload).to_bytes(4, "little")


def encode_sample(specs: Sequence[ArraySpec], sample: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The chunks of one sample, by array."""
    return {spec.name: encode_chunk(spec, sample[spec.name]) for spec in specs}


def decode_chunk(spec: ArraySpec, chunk: bytes) -> np.ndarray:
    """One sample's array, shape `spec.shape`. Raises CorruptCache before any decompressor sees unexpected sizes."""
    payload = bytes(chunk[:-4])
    if len(chunk) < 4 or crc32c(payload) != int.from_bytes(chunk[-4:], "little"):
        raise CorruptCache(f"array {spec.name}: crc32c of a chunk differs")
    if spec.level is not None:
        # Blosc's header: bytes 4-8 the decoded size, 12-16 the encoded one. A few kB can declare gigabytes.
        declared = int.from_bytes(payload[4:8], "little")
        if len(payload) < 16 or declared != spec.nbytes or int.from_bytes(payload[12:16], "little") != len(payload):
            raise CorruptCache(f"array {spec.name}: chunk declares {declared} bytes, expected {spec.nbytes}")
        try:
            payload = Blosc().decode(payload)
        except (RuntimeError, ValueError) as error:
            raise CorruptCache(f"array {spec.name}: chunk does not decompress ({error})") from error
    if len(payload) != spec.nbytes:
        raise CorruptCache(f"array {spec.name}: chunk holds {len(payload)} bytes, expected {spec.nbytes}")
    return np.frombuffer(payload, np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)
