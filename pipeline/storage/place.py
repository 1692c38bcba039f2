"""A place: the path of a local folder or file, or of a remote object; and what treats both alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pipeline.storage.object_store import RemotePath

Place = Path | RemotePath
A = TypeVar("A")
B = TypeVar("B")

AGAIN = "run stage 1 again"
DELETE = f"delete it and {AGAIN}"
MENDS = "`python -m pipeline repair --config C` mends it"
AT_A_TIME = 16  # requests of one process


def remedy(path: Place, here: str) -> str:
    """What helps against a bad file of a cache: `here` in a folder; afar, where `repair` does not reach, what does."""
    if not isinstance(path, RemotePath):
        return here
    if path.store.scheme in ("http", "https"):
        return "put a whole copy of it on the server"
    if path.name == "zarr.json" or "." not in path.name:  # a table of codec/
        return "delete the cache's codec.json and run stage 1 again"
    return here if here == AGAIN else "delete this object and run stage 1 again, which makes it anew"


def each(where: Place, call: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """[call(item), ...]; where each takes a round trip, many at a time."""
    if not isinstance(where, RemotePath):
        return [call(item) for item in items]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(call, items))
