"""A place: the path of a local file or folder, or of a remote one; and its storage."""

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
    """The storage of a place."""
    return LOCAL if isinstance(place, Path) else place.storage


def key_of(place: Place) -> str:
    """The key of a place in its storage."""
    return str(place) if isinstance(place, Path) else place.key


def remedy(place: Place, advice: str) -> str:
    """What to do about a bad file of a cache; `advice`: what helps in a local folder."""
    return storage_of(place).remedy(key_of(place), advice)


def call_each(where: Place, call: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """[call(item), ...]; many at a time where each takes a round trip."""
    workers = storage_of(where).max_requests
    if workers == 1:
        return [call(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(call, items))
