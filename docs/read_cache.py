"""Reads a teacher cache with numpy and numcodecs alone: `python docs/read_cache.py CACHE`. docs/format.md says why."""

import hashlib
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from numcodecs import Blosc
from numcodecs.checksum32 import CRC32C

N = np.arange(4)
DCT = np.cos(np.pi / 4 * (N + 0.5) * N[:, None]) * np.sqrt([[1 / 4], [1 / 2], [1 / 2], [1 / 2]])
BOUNDS = np.array([round(2 ** (k / 2)) for k in range(110)])


def chunk(data, meta):  # bytes of a chunk, its array's zarr.json -> the chunk's numbers
    codecs, shape = [codec["name"] for codec in meta["codecs"]], meta["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(meta["data_type"]).newbyteorder("<")
    data = bytes(CRC32C().decode(data)) if "crc32c" in codecs else data
    if "blosc" in codecs:
        assert int.from_bytes(data[4:8], "little") == np.prod(shape) * dtype.itemsize, "declared size differs"
        data = Blosc().decode(data)
    return np.frombuffer(data, dtype).reshape(shape)


def samples(tar):  # every sample of a shard, {array: numbers}
    assert json.loads(tar.with_suffix(".json").read_bytes())["sha256"] == hashlib.sha256(tar.read_bytes()).hexdigest()
    with tarfile.open(tar, "r:") as file:
        members = {member.name: file.extractfile(member).read() for member in file if member.isreg()}
    metas = {n: json.loads(members[f"{n}/zarr.json"]) for n in json.loads(members["zarr.json"])["attributes"]["arrays"]}
    for i in range(metas["record"]["shape"][0]):
        yield {
            n: chunk(members["/".join([n, "c", str(i), *"0" * (len(m["shape"]) - 1)])], m)[0] for n, m in metas.items()
        }


def grids(packed, sides):  # (X, P) -> (X, H, W) of every level
    ends = np.cumsum([h * w for h, w in sides])
    return [packed[:, end - h * w : end].reshape(-1, h, w) for end, (h, w) in zip(ends, sides)]


def blocks(whole):  # (H, W) -> (H4, W4): sums of 4 x 4
    padded = np.pad(whole, [(0, -side % 4) for side in whole.shape])
    return padded.reshape(padded.shape[0] // 4, 4, padded.shape[1] // 4, 4).sum(axis=(1, 3))


def decode_map(packed, sides, top):  # of every level: m, buckets, sums by block
    relative = (np.minimum(np.arange(256), top) / top) ** 4
    halves = np.floor(2 * np.log2(np.maximum(relative, 1e-300)) + 1e-9)
    for s, d in zip(packed[: len(sides)].astype(int), grids(packed[None, len(sides) :], sides)):
        c = d[0].astype(np.int64).cumsum(0).cumsum(1) & 255
        m = relative.astype(np.float32)[c] * np.float32(0.0 if s == 255 else 2.0**-s)
        bucket = np.where(c > 0, np.clip(halves[c] - 2 * s + 48, 1, 48), 0).astype(int)
        yield m, bucket, blocks(np.rint(relative * 2**30).astype(np.int64)[c])


def log(n):
    return np.searchsorted(BOUNDS, n, side="right")


def dequantise(what, tokens, levels, codec):  # features or sqrt(scores), (X, H, W) of every level
    mean, basis, expected = (codec[f"{what}_{table}"] for table in ("mean", "basis", "expected"))
    keys = [
        e.reshape(-1, 1).astype(int) + log(b).reshape(1, -1) - log(b.sum()) for e, (_, _, b) in zip(expected, levels)
    ]
    order = np.argsort(-np.concatenate([key.ravel() for key in keys]), kind="stable")
    at, z, q = np.cumsum((tokens & 255) + 1) - 1, tokens >> 8, np.zeros(len(order))
    q[order[at[z > 0]]] = ((z >> 1) ^ -(z & 1))[z > 0]
    sums = np.array([m.sum(dtype=np.float64) for m, _, _ in levels])
    for n, (part, (m, bucket, b)) in enumerate(zip(np.split(q, np.cumsum([key.size for key in keys])[:-1]), levels)):
        step = codec["settings"][f"{what}_step"] * sums[n] ** 0.5 * sums.sum() ** -0.3 if sums[n] > 0 else 1.0
        plane = np.einsum("ki,rklhw,lj->rhiwj", DCT, part.reshape(-1, 4, 4, *b.shape) * step, DCT)
        plane = plane.reshape(len(plane), 4 * b.shape[0], -1)[:, : m.shape[0], : m.shape[1]]
        residual = np.tensordot(basis[n] if basis.ndim == 3 else basis, plane, 1)
        yield np.moveaxis(mean[n][bucket], -1, 0) + np.divide(
            residual, np.sqrt(m), np.zeros_like(residual), where=m > 0
        )


def decode(sample, codec):  # features (C, H, W), scores (K, H, W), frs (H, W) of every level
    sides = sample["record"][11:].reshape(-1, 2)
    if codec["settings"]["type"] == "lossless":
        return (
            grids(sample["features"].T, sides),
            grids(sample["scores"].T, sides),
            [m[0] for m in grids(sample["frs"][None], sides)],
        )
    levels = ones = list(decode_map(sample["frs"], sides, codec["settings"]["map_top"]))
    if codec["settings"].get("profile") == "universal":
        ones = [(np.ones_like(m), bucket, blocks(np.full(m.shape, 2**30))) for m, bucket, _ in levels]
    roots = dequantise("score", sample["scores"], levels, codec)
    return (
        list(dequantise("feature", sample["features"], ones, codec)),
        [u * np.abs(u) for u in roots],
        [m for m, _, _ in levels],
    )


def tables(cache):  # the codec's arrays, and its settings
    found = {"settings": json.loads((cache / "codec.json").read_bytes())["settings"]}
    for path in cache.glob("codec/*/zarr.json"):
        meta = json.loads(path.read_bytes())
        found[path.parent.name] = chunk(path.parent.joinpath("c", *"0" * len(meta["shape"])).read_bytes(), meta)
    return found


def read(cache):  # image id, view, features, scores, frs of every view of every complete pass
    codec = tables(Path(cache))
    for manifest in sorted(Path(cache).glob("pass-*/manifest.json")):
        for tar in sorted(manifest.parent.glob("shard-*.tar")):
            for sample in samples(tar):
                yield (*(int(n) for n in sample["record"][:2]), *decode(sample, codec))


if __name__ == "__main__":
    for image_id, view, features, scores, frs in read(sys.argv[1]):
        print(image_id, view, features[0].shape, scores[0].shape, f"{max(level.max() for level in frs):.3f}")
