"""Lock a cache folder for writing. All ranks and workers of a run share one lock."""

from __future__ import annotations

from contextlib import AbstractContextManager

from pipeline.storage.base import Lock, Place
from pipeline.storage.place import key_of, storage_of


def locked(folder: Place, wait: bool = False) -> AbstractContextManager[Lock]:
    """Lock a folder for writing. If another process has the lock, wait for it if `wait`, otherwise raise CacheError.

    Write to `lock.place`. A local lock is released when the process ends. In an object store, the lock of a killed
    process expires.
    """
    return storage_of(folder).lock(key_of(folder), wait)


def joined(shared: Place) -> AbstractContextManager[None]:
    """Join a lock that another process of this run shares. `shared`: the result of that lock's `share`."""
    return storage_of(shared).join(key_of(shared))
