"""The lock on a cache that is being written; one run holds it, with all of its ranks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import CacheError
from pipeline.storage.lease import leased
from pipeline.storage.object_store import RemotePath
from pipeline.storage.place import Place

_locks: dict[Path, Any] = {}  # folders whose flock this process holds, and the open file that it is on


@contextmanager
def locked(folder: Place, wait: bool = False) -> Iterator[None]:
    """Hold a folder for writing; raise CacheError where another process does, or wait for it.

    On a file system the lock dies with the process, so a kill never leaves it behind; in an object store it goes stale.
    """
    if isinstance(folder, RemotePath):
        with leased(folder / ".lock", wait):
            yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _flocked(folder, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)) as file:
        _locks[folder] = file
        try:
            yield
        finally:
            _locks.pop(folder, None)


def _flocked(folder: Path, how: int) -> Any:
    """The lock's open file; a shared flock needs one for reading on some file systems, an exclusive one for writing."""
    file = open(folder / ".lock", "a+")  # noqa: SIM115 (the lock is held as long as it is open)
    try:
        fcntl.flock(file, how)
    except OSError as error:
        file.close()
        raise CacheError(f"{folder}: another process is writing this cache; wait for it or stop it") from error
    return file


def share_locks() -> list[Path]:
    """Let other processes of this run hold its locks as well (`join_locks`). Returns the folders.

    Nobody else gets a lock then before the last of them has ended, in whatever order they are killed.
    """
    for folder, file in _locks.items():
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # lets go for a moment, so it may be another's now
        except OSError as error:
            raise CacheError(f"{folder}: another process is writing this cache; wait for it or stop it") from error
    return list(_locks)


def join_locks(folders: list[Path]) -> None:
    """Hold these as well, until `leave_locks` or the end of this process."""
    for folder in folders:
        if folder not in _locks:
            _locks[folder] = _flocked(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)


def leave_locks() -> None:
    while _locks:
        _locks.popitem()[1].close()


os.register_at_fork(after_in_child=leave_locks)  # or a loader's worker would hold the lock of a run that was killed
