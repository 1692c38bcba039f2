"""Lock a cache folder for writing; one run holds the lock, with all of its ranks and workers."""

from __future__ import annotations

from contextlib import AbstractContextManager

from pipeline.storage.base import Lock, Place
from pipeline.storage.place import key_of, storage_of


def locked(folder: Place, wait: bool = False) -> AbstractContextManager[Lock]:
    """Hold a folder for writing; raise CacheError where another process does, or wait for it.

    Write to `lock.place`. Locally the lock ends with the process; in an object store a lock whose owner was killed
    goes stale.
    """
    return storage_of(folder).lock(key_of(folder), wait)


def joined(shared: Place) -> AbstractContextManager[None]:
    """Hold a lock too that another process of this run shares; `shared`: what its `share` returned."""
    return storage_of(shared).join(key_of(shared))
