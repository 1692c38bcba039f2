"""The block DCT, KLT basis and step sizes of the frs codec, as pure functions."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 4
LARGE, PART = 1 << 22, 1 << 18  # from this size on, a CPU transforms parts of this size, which its cache can hold


@lru_cache(maxsize=16)
def dct_matrix(device: torch.device | str = "cpu") -> Tensor:
    """Return the orthonormal DCT-II matrix (4, 4), one frequency per row. It is copied to the device only once."""
    return _exact_dct().to(device=device, dtype=torch.float32)


@lru_cache(maxsize=16)
def inverse_dct_matrix(device: torch.device) -> Tensor:
    """Return the inverse DCT of a block as a matrix, (16 positions, 16 frequencies). It is copied only once."""
    inverse = _exact_dct().T.contiguous()
    return torch.kron(inverse, inverse).to(device=device, dtype=torch.float32)


def _exact_dct() -> Tensor:
    n = torch.arange(BLOCK, dtype=torch.float64)
    matrix = torch.cos(math.pi / BLOCK * (n[None] + 0.5) * n[:, None]) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix


def to_blocks(x: Tensor) -> Tensor:
    """Zero-pad (..., H, W) at the end so that both sides are multiples of 4. Return x itself if they are."""
    right, down = -x.shape[-1] % BLOCK, -x.shape[-2] % BLOCK
    return F.pad(x, (0, right, 0, down)) if right or down else x


def dct(x: Tensor, inverse: bool = False) -> Tensor:
    """Apply the 4x4 block DCT to (B, R, H, W), with sides that are multiples of 4. Coefficients replace their block."""
    matrix = dct_matrix(x.device)
    matrix = matrix.T if inverse else matrix
    if x.device.type != "cpu" or x.numel() < LARGE:
        return _dct(x, matrix)
    out, planes = x.new_empty(x.shape), max(1, PART * x.shape[1] // x.numel())
    for part, found in zip(x.split(planes, dim=1), out.split(planes, dim=1)):
        found.copy_(_dct(part, matrix))
    return out


def _dct(x: Tensor, matrix: Tensor) -> Tensor:
    b, r, h, w = x.shape
    blocks = x.reshape(b, r, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    blocks = torch.einsum("ij,brhjwk->brhiwk", matrix, blocks)
    return torch.einsum("ij,brhkwj->brhkwi", matrix, blocks).reshape(b, r, h, w)


def frequency_energy(planes: Tensor) -> Tensor:
    """Return the energy of every frequency of coefficients (B, R, H4, W4), summed over blocks: (B, R, 16)."""
    blocks = planes.square().unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    return blocks.sum(dim=(2, 4)).flatten(2)


def klt(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvectors (columns, float32) and eigenvalues of a symmetric (C, C) matrix, by decreasing eigenvalue.

    The largest entry of each vector is positive, because LAPACK does not define the sign.
    """
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    return orient(vectors), values


def orient(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (columns) as float32, each with a positive largest entry."""
    peak = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[peak, np.arange(vectors.shape[1])])
    return (vectors * signs).astype(np.float32)


class Steps:
    """The quantiser steps of every level, (B, L), for the map's sums S (B, L): step * S_l^0.5 * (sum_l S_l)^-0.3.

    The loss of level l is divided by S_l, so steps proportional to its root give equal errors in the loss. With the
    second factor, the gradient error does not depend on the image size. A level whose map is zero has no coefficients,
    and the step 1.
    """

    def __init__(self, sums: Tensor) -> None:
        total = sums.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        self._root, self._factor, self._empty = sums.sqrt(), total**-0.3, sums <= 0

    def of(self, step: float) -> Tensor:
        """Return the steps of a tensor with this step."""
        return (step * self._root).mul_(self._factor).masked_fill_(self._empty, 1.0)
