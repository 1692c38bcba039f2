"""Lock a cache folder for writing. All ranks and workers of a run share one lock."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from pipeline.storage.base import Lock, Place
from pipeline.storage.files import local_path
from pipeline.storage.place import key_of, storage_of


def locked(folder: Place, wait: bool = False) -> AbstractContextManager[Lock]:
    """Lock a folder for writing. If another process has the lock, wait for it if `wait`, otherwise raise CacheError.

    Write to `lock.place`. A local lock is released when the process ends. In an object store, the lock of a killed
    process expires.
    """
    return storage_of(folder).lock(key_of(folder), wait)


def announce_lock(folder: Place, log: Callable[[str], None]) -> None:
    """Log one line if a lock in an object store has an owner: `locked` may watch it for most of a minute."""
    if local_path(folder) is None and (folder / ".lock").exists():
        log(f"lock     {folder / '.lock'} exists; watching whether its owner is running")


def joined(shared: Place) -> AbstractContextManager[None]:
    """Join a lock that another process of this run shares. `shared`: the result of that lock's `share`."""
    return storage_of(shared).join(key_of(shared))
