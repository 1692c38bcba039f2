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
QUARTERS = np.array([round(2 ** (k / 4)) for k in range(240)])
BUCKETS = np.array([(b, 0) if b < 4 else ((2 + b % 2) << b // 2 - 1, b // 2 - 1) for b in range(64)])


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


def tokens_of(data, sizes, classes, counts, pairs):  # frs2: undo the entropy coding, given the sizes of the 64 classes
    bits = np.concatenate([np.unpackbits(data[1:]).astype(int), np.zeros(64, int)])
    lanes, at = fields(bits, 0, np.full(1 << int(data[0]), 12))
    usual, used = classes[1:].astype(int), sizes > 0
    rows = (quarters(sizes) - abs(usual - 52) + 16).clip(0, 63)
    found, at = symbols(bits, at, lanes, rows[used], counts)
    low, at = fields(bits, at, BUCKETS[found, 1])
    n = np.zeros(64, int)
    n[used] = BUCKETS[found, 0] + low
    n = np.where(usual >= 52, sizes - n, n)
    odds = np.repeat((quarters((n << 24) // (sizes - n + 1)) - 44).clip(0, 79), n)
    found, at = symbols(bits, at, lanes, odds, pairs)
    bits, at = np.concatenate([(lanes[:, None] >> np.arange(12)[::-1] & 1).ravel(), bits[at:]]), 0
    unit = np.maximum(0, (52 - odds) // 4 - 3)
    (gap, gap_width), (size, size_width) = BUCKETS[found // 16].T, BUCKETS[found % 16].T
    gap, gap_width, size, full = gap << unit, gap_width + unit, size + 1, [found // 16 == 15, found % 16 == 15]
    for first, width, whole in ((gap, gap_width, full[0]), (size, size_width, full[1])):
        first[whole] = 0
        width[whole], at = fields(bits, at, np.full(whole.sum(), 5))
    low, at = fields(bits, at, gap_width)
    gap, (low, at) = gap + low, fields(bits, at, size_width)
    signed = 2 * (size + low) - fields(bits, at, np.ones(len(found), int))[0]
    places = np.empty(len(found), int)  # the gaps of a class begin at its first symbol
    for start, first, count in zip(np.cumsum(sizes) - sizes, np.cumsum(n) - n, n):
        places[first : first + count] = start - 1 + np.cumsum(gap[first : first + count] + 1)
    zeros = np.diff(places, prepend=-1) - 1
    tokens = np.full((zeros // 256 + 1).sum(), 255)
    tokens[np.cumsum(zeros // 256 + 1) - 1] = signed << 8 | zeros % 256
    return tokens


def quarters(x):
    return np.searchsorted(QUARTERS, x, side="right") - 1


def fields(bits, at, widths):  # numbers of these widths from bit `at` on, and the place behind them
    ends, k = at + np.cumsum(widths), np.arange(32)
    values = ((bits[ends[:, None] - 1 - k] * (k < widths[:, None])) << k).sum(axis=1)
    return values, at + int(widths.sum())


def symbols(bits, at, lanes, rows, frequencies):  # each with its row of frequencies; changes the states of the lanes
    tables = np.zeros((len(frequencies), 3, 4096), int)
    for row in set(rows.tolist()):
        f = frequencies[row].astype(int)
        tables[row, 0, np.arange(4096) * 2563 % 4096] = np.repeat(np.arange(len(f)), f)
        x = np.concatenate([np.arange(n, 2 * n) for n in f])[np.argsort(np.argsort(tables[row, 0], kind="stable"))]
        tables[row, 1:] = 13 - np.frexp(x)[1], (x << 13 - np.frexp(x)[1]) - 4096
    found = np.zeros(len(rows), int)
    for i in range(0, len(rows), len(lanes)):
        found[i : i + len(lanes)], widths, states = tables[rows[i : i + len(lanes)], :, lanes[: len(rows) - i]].T
        low, at = fields(bits, at, widths)
        lanes[: len(low)] = states + low
    return found, at


def dequantise(what, sample, levels, tables, settings):  # what is added to the means or predictions of every level
    basis, expected = tables[f"{what}_basis"], tables[f"{what}_expected"].astype(int)
    logs = [np.searchsorted(BOUNDS, np.append(b, b.sum()), side="right") for _, _, b in levels]
    keys = [e.reshape(-1, 1) + log[:-1] - log[-1] for e, log in zip(expected, logs)]
    tokens, packed = sample[f"{what}s"], np.concatenate([key.ravel() for key in keys])
    if settings["type"] == "frs2":
        coder = [tables[f"{what}_{name}"] for name in ("classes", "counts", "pairs")]
        sizes = np.bincount((int(coder[0][0]) - packed).clip(0, 63), minlength=64)
        tokens = tokens_of(tokens, sizes, *coder)
    order = np.argsort(-packed, kind="stable")
    at, z, q = np.cumsum((tokens & 255) + 1) - 1, tokens >> 8, np.zeros(len(order))
    q[order[at[z > 0]]] = ((z >> 1) ^ -(z & 1))[z > 0]
    sums = np.array([m.sum(dtype=np.float64) for m, _, _ in levels])
    steps = settings[f"{what}_step"] * sums**0.5 * max(sums.sum(), 1e-300) ** -0.3
    for n, (part, (m, _, b)) in enumerate(zip(np.split(q, np.cumsum([key.size for key in keys])), levels)):
        plane = np.einsum("ki,rklhw,lj->rhiwj", DCT, part.reshape(-1, 4, 4, *b.shape) * steps[n], DCT)
        plane = plane.reshape(-1, 4 * len(b), 4 * b.shape[1])[:, : len(m), : m.shape[1]]
        u, rank = basis[n] if basis.ndim == 3 else basis, basis.shape[-1]
        residual = np.tensordot(u, plane[:rank], 1) + (plane[rank:] if len(plane) > rank else 0)
        yield residual / np.sqrt(np.where(m > 0, m, np.inf))


def convolve(x, weights):  # (I, H, W), (O, I, 3, 3) -> (O, H, W), with zeros around x
    x, (h, w) = np.pad(x, ((0, 0), (1, 1), (1, 1))), x.shape[1:]
    parts = (np.tensordot(weights[:, :, i, j], x[:, i : i + h, j : j + w], 1) for i in range(3) for j in range(3))
    return sum(parts)


def enlarge(x, sides):  # (C, h, w) -> (C, *sides): bilinear, the sides doubled, then cropped or its border repeated
    for axis, side in enumerate(sides, 1):
        i = np.minimum(np.arange(side), 2 * x.shape[axis] - 1)
        other = (i // 2 + i % 2 * 2 - 1).clip(0, x.shape[axis] - 1)
        x = 0.75 * x.take(i // 2, axis) + 0.25 * x.take(other, axis)
    return x


def log_map(m):
    return np.log2(np.maximum(m, 2.0**-24)) / 6 + 1


def predict_level(n, coarser, m, tables):  # features of level n less their means, from those of level n + 1
    of = {name[6:]: table[n] for name, table in tables.items() if name.startswith("level_")}
    inner = np.tensordot(of["in"], coarser, 1) + convolve(np.tensordot(of["reduce"], coarser, 1), of["near"])
    inputs = convolve(np.stack([log_map(m), np.sqrt(m)]), of["map"].reshape(-1, 2, 3, 3))
    return enlarge(np.tensordot(of["out"], inner, 1), m.shape) + inputs + of["bias"][:, None, None]


def predict_roots(n, y, m, tables):  # sqrt(scores) of level n from its features
    net, m = {name[4:]: table for name, table in tables.items() if name.startswith("net_")}, m.astype(float)
    x = np.tensordot(net["input"], y - net["center"][:, None, None], 1)
    h = np.maximum(convolve(np.concatenate([x, log_map(m)[None]]), net["first"]) + net["level"][n][:, None, None], 0)
    h = np.maximum(convolve(h, net["second"]) + net["bias"][:, None, None], 0)
    z, near = np.tensordot(net["output"], h, 1) + net["offset"][:, None, None], m.clip(1e-6, 1 - 17 / 2**24)
    return (1 + np.exp(-(z - z.max(axis=0) + np.log(near / (1 - near))).clip(-700))) ** -0.5


def decode(sample, tables, settings):  # features (C, H, W), scores (K, H, W; [] if left out), frs (H, W) of every level
    sides, packed, kind = sample["record"][11:].reshape(-1, 2), sample["frs"], settings["type"]
    if kind == "lossless":
        return [grids(sample[name].T, sides) if name in sample else [] for name in ("features", "scores", "frs")]
    assert kind in ("frs", "frs2"), f"expected codec lossless, frs or frs2, found {kind}"
    flags, packed = np.split(packed, [len(sides)]) if kind == "frs2" else (np.zeros(len(sides), int), packed)
    levels = own = list(decode_map(packed, sides, settings["map_top"]))
    if settings.get("profile") == "universal":
        own = [(np.ones_like(m), bucket, blocks(np.full(m.shape, 2**30))) for m, bucket, _ in levels]
    features, scores, r = [], [], None
    for n, residual in reversed(list(enumerate(dequantise("feature", sample, own, tables, settings)))):
        m, bucket, _ = levels[n]
        r = residual + (predict_level(n, r, m, tables) if flags[n] & 1 else 0)
        features.insert(0, np.moveaxis(tables["feature_mean"][n][bucket], -1, 0) + r)
    for n, residual in enumerate(dequantise("score", sample, levels, tables, settings) if "scores" in sample else []):
        m, bucket, _ = levels[n]
        mean = np.moveaxis(tables["score_mean"][n][bucket], -1, 0)
        u = residual + (predict_roots(n, features[n], m, tables) if flags[n] & 2 else mean)
        scores.append(u * np.abs(u))
    return features, scores, [m for m, _, _ in levels]


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
    tables = {name: t.astype("float32") if t.dtype == "float16" else t for name, t in tables.items()}
    passes = sorted(manifest.parent for manifest in cache.glob("pass-*/manifest.json"))
    for group in (open_shard(tar) for folder in passes for tar in sorted(folder.glob("shard-*.tar"))):
        for sample in samples(group):
            yield *map(int, sample["record"][:2]), *decode(sample, tables, group.attrs["codec"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # zarr: variable_length_bytes has no final specification yet
    signal(SIGPIPE, SIG_DFL)  # exit quietly when `| head` closes the pipe
    for image_id, view, *parts in read(Path(sys.argv[1])):
        print(image_id, view, *(part[0].shape for part in parts if part))
