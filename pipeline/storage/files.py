"""Small files, whole or not at all: in a folder and in an object store alike."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from pipeline.errors import CacheError, CorruptCache
from pipeline.storage.disk_cache import disk_of
from pipeline.storage.lease import require_held
from pipeline.storage.local import Counted, naming, sync
from pipeline.storage.object_store import RemotePath
from pipeline.storage.place import AGAIN, DELETE, Place, remedy

SMALL = 256 << 20  # bytes of a file that is read at once; the plan of a pass over ten million images has 200 MB


def read_small(path: Place, sha256: str | None = None) -> bytes:
    """All bytes of a small file; with `sha256`, what a manifest gives, no others. Raises CacheError or CorruptCache."""
    disk = disk_of(path.store) if isinstance(path, RemotePath) and sha256 else None
    stored = disk.read_small(sha256) if disk and sha256 else None
    if stored is not None:
        return stored
    try:
        raw = path.read_bytes(SMALL) if isinstance(path, RemotePath) else _read(path)
    except OSError as error:
        if sha256:
            raise CorruptCache(f"{path}: missing, but the manifest lists it; {remedy(path, AGAIN)}") from error
        raise CacheError(f"{path}: expected a file of the cache, found {error.strerror or error}") from error
    if sha256 and hashlib.sha256(raw).hexdigest() != sha256:
        raise CorruptCache(f"{path}: not what the manifest lists; {remedy(path, DELETE)}")
    if disk and sha256:
        disk.keep_small(sha256, raw)
    return raw


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > SMALL:
            raise CorruptCache(f"{path}: expected {SMALL} bytes at most, found more; no file of a cache")
        return file.read()


@contextmanager
def atomic_file(path: Place) -> Iterator[Any]:
    """Binary file that appears under `path` whole and synced, or not at all."""
    if isinstance(path, RemotePath):
        folder = Path(tempfile.gettempdir())
        with naming(folder), tempfile.TemporaryFile(dir=folder) as file:  # no name: nothing is left behind a kill
            yield file
            require_held()
            file.seek(0)
            path.put(file)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with naming(path):
            with Counted(FileIO(temporary, "w")) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if os.fstat(file.fileno()).st_size != file.written:
                    raise OSError(errno.EIO, "the disk took fewer bytes than it said")
            os.replace(temporary, path)
            sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def discard(path: Place) -> None:
    """Delete a file, if it is there."""
    if isinstance(path, RemotePath):
        require_held()
    path.unlink(missing_ok=True)
