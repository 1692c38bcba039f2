"""Check the tables of a codec, which come from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.budget import BUDGET, excess
from pipeline.codecs.frs.map_values import BUCKETS
from pipeline.codecs.frs.order import FREQUENCIES, STRENGTHS, WIDEST

ORDERS = 4  # arrays of int64 or float64 by key and plane, in order.py

Tables = Mapping[str, np.ndarray]


def check_tables(tables: Tables, what: str, width: int) -> None:
    """Raise ValueError where the tables of 'feature' or 'score' do not fit `width` channels, or cost too much."""
    levels, rank = len(tables["feature_basis"]), tables[f"{what}_basis"].shape[-1]
    if rank > width:
        raise ValueError(f"table {what}_basis: expected at most {width} planes, found {rank}")
    check_table(tables, f"{what}_basis", (levels, width, rank) if what == "feature" else (width, rank))
    check_table(tables, f"{what}_mean", (levels, BUCKETS, width))
    of_channels = what == "score" and rank < width and tables[f"{what}_expected"].shape[1:2] == (rank + width,)
    check_table(tables, f"{what}_expected", (levels, rank + width * of_channels, FREQUENCIES))
    expected = tables[f"{what}_expected"]
    if int(expected.max()) - int(expected.min()) > WIDEST:
        raise ValueError(f"table {what}_expected: values differ by more than {WIDEST}")


def check_order(tables: Tables, kinds: Sequence[str]) -> None:
    """Raise ValueError where the symbols of 'feature' or 'score' cost too much to order, or have a foreign table."""
    for name in tables:
        if name.endswith("_expected") and name.removesuffix("_expected") not in kinds:
            raise ValueError(f"table {name}: does not fit the settings")
    for what, size in order_bytes(tables).items():
        wrong = excess(f"bytes to order the {what}s of a view", size, BUDGET.sample_bytes)
        if wrong is not None:
            raise ValueError(wrong)


def check_table(tables: Tables, name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError where a table has another shape, or a number that is not finite."""
    table = tables[name]
    if table.shape != shape:
        raise ValueError(f"table {name}: expected shape {shape}, found {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"table {name}: contains NaN or infinity")


def limit_sizes(expected: np.ndarray, planes: int) -> np.ndarray:
    """Raise the smallest expected sizes (L, R, 16) as far as needed to order a view's symbols within the budget.

    planes: of the tensor that has most, because all tensors have as many keys. Only a wide head has so many.
    """
    keys = BUDGET.sample_bytes // (ORDERS * 8 * expected.shape[0] * planes)
    least = int(expected.max()) - max(0, keys - STRENGTHS)
    return expected if least <= int(expected.min()) else np.maximum(expected, expected.dtype.type(least))


def order_bytes(tables: Tables) -> dict[str, int]:
    """Return about how many bytes it takes to order the symbols of each tensor of one view, by 'feature' or 'score'."""
    expected = {name.removesuffix("_expected"): t for name, t in tables.items() if name.endswith("_expected")}
    return {what: ORDERS * 8 * (STRENGTHS + widest(tables)) * len(t) * t.shape[1] for what, t in expected.items()}


def widest(tables: Tables) -> int:
    """Return the largest difference between two expected sizes of a tensor. The order of each tensor has these keys."""
    expected = (table for name, table in tables.items() if name.endswith("_expected"))
    return max(int(table.max()) - int(table.min()) for table in expected)
