"""The order of a sample's symbols by a stable sort of all keys, as docs/format.md describes it. A reference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps

FREQUENCIES = 16


def coded_maps(sizes: list[tuple[int, int]], batch: int, rng: np.random.Generator) -> BatchMaps:
    """Maps with any codes, exponents and empty blocks."""
    maps = [torch.from_numpy(rng.random((batch, *size)) ** 9 * (rng.random((batch, *size)) < 0.7)) for size in sizes]
    return BatchMaps.encode([m.float() * 10.0 ** -rng.integers(0, 20) for m in maps], 99)


def integers(maps: BatchMaps, sample: int) -> list[np.ndarray]:
    """The maps of one sample in units of 2^-30, without their exponents."""
    whole = np.rint((np.minimum(np.arange(256), maps.top) / maps.top) ** 4 * 2**30).astype(np.int64)
    grids = zip(maps.canvas.split(maps.codes), maps.canvas.own[sample])
    return [whole[codes[sample, :h, :w].numpy()] for codes, (h, w) in grids]


def symbol_order(expected: np.ndarray, maps: list[np.ndarray]) -> np.ndarray:
    """Return the order of the symbols of expected (L, R, 16), given integer maps [(H_l, W_l)]."""
    bounds = np.array([round(2 ** (k / 2)) for k in range(110)])
    keys = []
    for table, m in zip(expected, maps):
        whole = np.pad(m, [(0, -side % 4) for side in m.shape])
        blocks = whole.reshape(whole.shape[0] // 4, 4, whole.shape[1] // 4, 4).sum(axis=(1, 3)).ravel()
        strength = np.searchsorted(bounds, blocks, "right") - np.searchsorted(bounds, m.sum(), "right")
        keys.append((table.reshape(-1, 1).astype(int) + strength[None]).ravel())
    return np.argsort(-np.concatenate(keys), kind="stable")


def to_groups(planes: Tensor) -> Tensor:
    """Reorder (R, H4, W4) to (R, 16, blocks): frequency by frequency and block by block, each row by row."""
    r, h, w = planes.shape
    return planes.reshape(r, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3).reshape(r, FREQUENCIES, -1)


def stream(tokens: np.ndarray, symbols: int) -> np.ndarray:
    """Return the sorted symbols (N,) that tokens stand for."""
    at, z = np.cumsum((tokens & 255) + 1) - 1, tokens >> 8
    found = np.zeros(symbols, np.int64)
    found[at[z > 0]] = ((z >> 1) ^ -(z & 1))[z > 0]
    return found


def in_plane_order(tokens: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the symbols (N,) by level, plane, frequency and block."""
    found = np.empty(len(order), np.int64)
    found[order] = stream(tokens, len(order))
    return found


def groups_of(planes: list[Tensor]) -> np.ndarray:
    """Return the planes [(R, H4, W4)] of one sample in the same order."""
    return torch.cat([to_groups(plane).flatten() for plane in planes]).numpy()
