"""Read and write files of any storage."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pipeline.budget import BUDGET
from pipeline.errors import CacheError, CorruptCache, StoreError
from pipeline.storage.base import AGAIN, DELETE, REPAIR, Place
from pipeline.storage.place import key_of, remedy, storage_of

RANGE = 8 << 20  # bytes of one request when a large file is read in parts


def read_small(path: Place, sha256: str | None = None, limit: int = BUDGET.json_bytes) -> bytes:
    """Read a file of at most `limit` bytes. `sha256`: that of the manifest, if there is one.

    Raise CacheError or CorruptCache.
    """
    try:
        raw = storage_of(path).read(key_of(path), limit, sha256)
    except FileNotFoundError as error:
        if sha256:
            raise CorruptCache(f"{path}: listed in the manifest but missing; {remedy(path, AGAIN)}") from error
        raise CacheError(f"{path}: missing; expected a file of the cache; {remedy(path, AGAIN)}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if sha256 and hashlib.sha256(raw).hexdigest() != sha256:
        raise CorruptCache(f"{path}: sha256 differs from the manifest; {remedy(path, DELETE)}")
    return raw


def unreadable(path: Any, error: OSError) -> StoreError:
    """Make the error for a file whose state is unknown: only "no such file" means that it is missing."""
    return StoreError(f"{path}: cannot be read ({error.strerror or error}); nothing was changed, solve this and retry")


def atomic_file(path: Place) -> AbstractContextManager[Any]:
    """Open a binary file for writing. It appears at `path` complete and durable, or not at all."""
    return storage_of(path).write_atomic(key_of(path))


def atomic_folder(path: Place) -> AbstractContextManager[Path]:
    """Open a local folder for writing. Its files become those of `path` if the block ends without an error."""
    return storage_of(path).write_folder(key_of(path))


def discard(path: Place) -> None:
    """Delete a file if it exists."""
    storage_of(path).delete(key_of(path))


def file_size(path: Place) -> int:
    """Return the size of a file in bytes. Raise OSError where it is missing."""
    return storage_of(path).size(key_of(path))


def local_path(path: Place) -> Path | None:
    """Return the local path of a file; None if the storage is remote."""
    return storage_of(path).local_path(key_of(path))


def list_files(folder: Place) -> list[str] | None:
    """Return the relative names of all files below a folder; None if the storage cannot list."""
    names = storage_of(folder).list_dir(key_of(folder))
    if names is None:
        return None
    files = [name for name in names if not name.endswith("/")]
    for name in names:
        if name.endswith("/"):
            files += [f"{name}{inner}" for inner in list_files(folder / name.rstrip("/")) or []]
    return files


def copy_file(source: Place, target: Place, sha256: str) -> None:
    """Copy a file of any size to a storage, in constant memory. Raise CorruptCache where its sha256 is another."""
    storage, key, found = storage_of(source), key_of(source), hashlib.sha256()
    try:
        with atomic_file(target) as file:
            data, size = storage.read_range(key, 0, RANGE)
            for at in range(0, size, RANGE):
                if at:
                    data, _ = storage.read_range(key, at, min(RANGE, size - at))
                found.update(data)
                file.write(data)
            if found.hexdigest() != sha256:
                raise CorruptCache(f"{source}: sha256 differs from the manifest; {remedy(source, REPAIR)}")
    except FileNotFoundError as error:
        raise CorruptCache(f"{source}: listed in the manifest but missing; {remedy(source, REPAIR)}") from error


def checksum(path: Place, expected: int | None = None, most: int | None = None) -> dict[str, Any]:
    """Return `bytes` and `sha256` of a file of any size, in constant memory. Raise FileNotFoundError if it is missing.

    `expected`: its size in bytes. `most`: the largest size that it can have. A file of another size is not read
    completely, and its sha256 is None.
    """
    storage, key = storage_of(path), key_of(path)
    found = hashlib.sha256()
    data, size = storage.read_range(key, 0, RANGE)
    if expected not in (None, size) or (most is not None and size > most):
        return {"bytes": size, "sha256": None}
    found.update(data)
    for at in range(RANGE, size, RANGE):
        found.update(storage.read_range(key, at, min(RANGE, size - at))[0])
    return {"bytes": size, "sha256": found.hexdigest()}
