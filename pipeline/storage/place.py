"""Functions of a Place, the path of a local or remote file or folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pipeline.storage.base import AGAIN, DELETE, REPAIR, Place, Storage
from pipeline.storage.local import LocalStorage

__all__ = ["AGAIN", "DELETE", "REPAIR", "Place", "call_each", "key_of", "remedy", "storage_of"]

A = TypeVar("A")
B = TypeVar("B")

LOCAL = LocalStorage()


def storage_of(place: Place) -> Storage:
    """Return the storage of a place."""
    return LOCAL if isinstance(place, Path) else place.storage


def key_of(place: Place) -> str:
    """Return the key of a place in its storage."""
    return str(place) if isinstance(place, Path) else place.key


def remedy(place: Place, local: str) -> str:
    """Return what to do about a bad file of a cache. `local`: the instruction for a local folder."""
    return storage_of(place).remedy(key_of(place), local)


def call_each(where: Place, call: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Return [call(item), ...]. Calls run concurrently if the storage is remote."""
    workers = storage_of(where).max_requests
    if workers == 1:
        return [call(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(call, items))
