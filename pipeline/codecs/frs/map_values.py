"""What the codes of a richness map stand for, as tables by code, or by exponent and code.

Values that are looked up have the same bits on every device.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

POWER = 4
EMPTY = 255  # exponent of a level whose map is zero at all positions
BUCKETS = 49  # bucket 0: m = 0; buckets 1 to 48: half octaves below 1, weakest first
UNIT = 2**30  # value of 1.0 when (c / top)^4 is an integer, for sums that are equal on every device
TINY = torch.finfo(torch.float32).tiny


@lru_cache(maxsize=64)
def code_table(what: str, top: int, device: torch.device) -> Tensor:
    """Return the value of each code, (256,) or (256, 256) by exponent. The table is copied to the device only once."""
    relative, exponents = _relative(top), np.arange(256)[:, None]
    if what == "integer":
        return torch.from_numpy(whole_values(top)).to(device)
    scale = np.where(exponents == EMPTY, 0, np.float32(2) ** -exponents.astype(np.float32))
    values = torch.from_numpy(relative.astype(np.float32) * scale.astype(np.float32))
    if what == "float":
        return values.to(device)
    if what == "inverse root":
        return inverse_root(values).to(device)
    with np.errstate(divide="ignore"):
        halves = np.floor(np.log2(relative) * 2 + 1e-9)
    buckets = np.clip(BUCKETS - 1 + halves - 2 * exponents, 1, BUCKETS - 1)
    buckets[:, 0] = 0
    return torch.from_numpy(buckets.astype(np.int64)).to(device)


def value_table(top: int, device: torch.device) -> Tensor:
    """Return m by exponent and code, (256, 256) float32."""
    return code_table("float", top, device)


@lru_cache(maxsize=64)
def whole_values(top: int) -> np.ndarray:
    """Return (256,) int64: m 2^s of each code, in units of 2^-30."""
    return np.round(_relative(top) * UNIT).astype(np.int64)


def _relative(top: int) -> np.ndarray:
    """Return (256,) float64: m 2^s of each code. Codes above `top`, which no encoder writes, are 1."""
    return (np.minimum(np.arange(256), top) / top) ** POWER


def inverse_root(m: Tensor) -> Tensor:
    """Return m^-1/2, and 0 where m = 0: such positions have no coefficients and no weight in a loss."""
    root = m.sqrt()
    return torch.where(root > 0, 1 / root.clamp_min(TINY), 0.0)
