"""Values of every type, to put where a JSON file or checkpoint has another one."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

Path_ = tuple[Any, ...]  # keys and indices from the root of a JSON value to a leaf

# Values of every JSON type, and those that a parser, a number or a page cannot hold.
ODD: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "negative": -1,
    "fraction": 200.5,
    "2^70": 2**70,
    "2^62": 2**62,
    "400 digits": 10**399,
    "1e308": 1e308,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "number as text": "0.1",
    "text": "x",
    "empty text": "",
    "control": "a\n\x1b[31mb",
    "surrogate": "\ud800",
    "long text": "y" * 100_000,
    "list": ["a", ["b"]],
    "numbers": [1, 2],
    "empty list": [],
    "dict": {"a": 1},
    "empty dict": {},
    "deep": None,  # replaced by DEEP
}
for _ in range(400):
    ODD["deep"] = [ODD["deep"]]


def leaves(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every value in a JSON value, containers included. Of a list, the first and the last row."""
    if at:
        yield at
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list) and value:
        keys = sorted({0, len(value) - 1})
    for key in keys:
        yield from leaves(value[key], (*at, key))


def replaced(value: Any, at: Path_, new: Any) -> Any:
    """Return a copy in which the value at a path is another one."""
    if not at:
        return new
    copy = deepcopy(value)
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = new
    return copy
