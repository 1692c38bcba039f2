"""Read a teacher cache with zarr and numpy only: `python docs/read_cache.py CACHE`. docs/format.md explains it."""

import hashlib
import sys
import tarfile
import warnings
from pathlib import Path
from signal import SIG_DFL, SIGPIPE, signal

import numpy as np
import zarr.buffer.cpu
from numcodecs import Blosc

DCT = np.cos(np.pi / 4 * np.outer(np.arange(4), np.arange(4) + 0.5)) * np.sqrt([[1 / 4], [1 / 2], [1 / 2], [1 / 2]])
BOUNDS = np.array([round(2 ** (k / 2)) for k in range(110)])


def open_shard(tar):  # the zarr group of a shard, after a check of its sha256
    assert hashlib.sha256(tar.read_bytes()).hexdigest() in tar.with_suffix(".json").read_text(), f"{tar}: bytes differ"
    with tarfile.open(tar, "r:") as file:
        members = {m.name: zarr.buffer.cpu.Buffer.from_bytes(file.extractfile(m).read()) for m in file if m.isreg()}
    return zarr.open_group(members, mode="r")


def grids(packed, sides):  # (..., P) -> (..., H, W) of every level; padding may follow
    return [x.reshape(*x.shape[:-1], *s) for x, s in zip(np.split(packed, np.cumsum(sides.prod(axis=1)), -1), sides)]


def blocks(whole):  # (H, W) -> (H4, W4): sums of 4 x 4
    return np.add.reduceat(np.add.reduceat(whole, range(0, len(whole), 4), 0), range(0, whole.shape[1], 4), 1)


def decode_map(packed, sides, top):  # of every level: m, buckets, sums by block
    relative = (np.minimum(np.arange(256), top) / top) ** 4
    for s, d in zip(packed[: len(sides)].astype(int), grids(packed[len(sides) :].astype(int), sides)):
        c = d.cumsum(0).cumsum(1) & 255
        m = relative.astype(np.float32)[c] * np.float32(0.0 if s == 255 else 2.0**-s)
        half_octave = np.floor(2 * np.log2(relative[np.maximum(c, 1)]) + 1e-9).astype(int) - 2 * s + 48
        yield m, np.where(c > 0, half_octave.clip(1, 48), 0), blocks(np.rint(relative * 2**30).astype(int)[c])


def dequantise(what, sample, levels, tables, settings):  # features or sqrt(scores), (X, H, W) of every level
    mean, basis, expected = (tables[f"{what}_{table}"] for table in ("mean", "basis", "expected"))
    logs = [np.searchsorted(BOUNDS, np.append(b, b.sum()), side="right") for _, _, b in levels]
    keys = [e.reshape(-1, 1) + log[:-1] - log[-1] for e, log in zip(expected, logs)]
    tokens, order = sample[f"{what}s"], np.argsort(-np.concatenate([key.ravel() for key in keys]), kind="stable")
    at, z, q = np.cumsum((tokens & 255) + 1) - 1, tokens >> 8, np.zeros(len(order))
    q[order[at[z > 0]]] = ((z >> 1) ^ -(z & 1))[z > 0]
    sums = np.array([m.sum(dtype=np.float64) for m, _, _ in levels])
    steps = settings[f"{what}_step"] * sums**0.5 * max(sums.sum(), 1e-300) ** -0.3
    for n, (part, (m, bucket, b)) in enumerate(zip(np.split(q, np.cumsum([key.size for key in keys])), levels)):
        plane = np.einsum("ki,rklhw,lj->rhiwj", DCT, part.reshape(-1, 4, 4, *b.shape) * steps[n], DCT)
        plane = plane.reshape(-1, 4 * len(b), 4 * b.shape[1])[:, : len(m), : m.shape[1]]
        residual = np.tensordot(basis[n] if basis.ndim == 3 else basis, plane, 1)
        yield np.moveaxis(mean[n][bucket], -1, 0) + residual / np.sqrt(np.where(m > 0, m, np.inf))


def decode(sample, tables, settings):  # features (C, H, W), scores (K, H, W; [] if left out), frs (H, W) of every level
    sides = sample["record"][11:].reshape(-1, 2)
    if settings["type"] == "lossless":
        return [grids(sample[name].T, sides) if name in sample else [] for name in ("features", "scores", "frs")]
    assert settings["type"] == "frs", f"expected codec lossless or frs, found {settings['type']}"
    levels = own = list(decode_map(sample["frs"], sides, settings["map_top"]))
    if settings.get("profile") == "universal":
        own = [(np.ones_like(m), bucket, blocks(np.full(m.shape, 2**30))) for m, bucket, _ in levels]
    features = dequantise("feature", sample, own, tables, settings)
    roots = dequantise("score", sample, levels, tables, settings) if "scores" in sample else []
    return list(features), [u * np.abs(u) for u in roots], [m for m, _, _ in levels]


def to_array(item, entry, positions):  # an item of a sample of format version 2
    data = Blosc().decode(item) if entry["compression"] and item else item
    array = np.frombuffer(data, np.dtype(entry["dtype"]).newbyteorder("<"))
    return array.reshape(positions, -1) if len(entry["dims"]) == 2 else array


def samples(group):  # the arrays of every sample by name
    arrays = group.attrs["arrays"]
    if arrays and isinstance(arrays[0], str):  # format version 1: one zarr array for each, with padding
        yield from ({name: group[name][i] for name in arrays} for i in range(group["record"].shape[0]))
    elif arrays:
        for i, record in enumerate(group["index/record"][:]):
            positions, items = record[11:].reshape(-1, 2).prod(axis=1).sum(), group["samples"][i]
            yield {e["name"]: to_array(x, e, positions) for x, e in zip(items, arrays)} | {"record": record}


def read(cache):  # image id, view, features, scores, frs of every view of every complete pass
    tables = {name: table[:] for name, table in zarr.open_group(cache / "codec", mode="r").arrays()}
    passes = sorted(manifest.parent for manifest in cache.glob("pass-*/manifest.json"))
    for group in (open_shard(tar) for folder in passes for tar in sorted(folder.glob("shard-*.tar"))):
        for sample in samples(group):
            yield *map(int, sample["record"][:2]), *decode(sample, tables, group.attrs["codec"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # zarr: variable_length_bytes has no final specification yet
    signal(SIGPIPE, SIG_DFL)  # exit quietly when `| head` closes the pipe
    for image_id, view, *parts in read(Path(sys.argv[1])):
        print(image_id, view, *(part[0].shape for part in parts if part))
