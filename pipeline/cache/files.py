"""Small files that must never be half-written or ambiguous: canonical JSON, atomic commit, digests.

All of it for a folder and for an object store alike.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

from pipeline.cache.disk import disk_of
from pipeline.cache.lease import require_held
from pipeline.cache.place import AGAIN, DELETE, Place, remedy
from pipeline.cache.remote import RemotePath
from pipeline.errors import CacheError, CorruptCache

SMALL = 256 << 20  # bytes of a file that is read at once; the plan of a pass over ten million images has 200 MB


def canonical(value: Any) -> bytes:
    """The one way this project writes a JSON value; two equal values have equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def read_json(path: Place, sha256: str | None = None) -> Any:
    """Read a JSON object that `write_json` wrote, without its seal. `sha256`: of its bytes, where a manifest gives it.

    Raises CacheError where the file is missing, CorruptCache where a byte of it was changed.
    """
    raw = read_small(path, sha256)
    try:
        value = json.loads(raw)
        intact = canonical(value) == raw and value.pop("seal") == digest(value)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise CorruptCache(f"{path}: not the JSON that was written (truncated or altered); {remedy(path, DELETE)}")
    return value


def sync(path: Path) -> None:
    """Make a file's bytes, or a rename in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Counted(BufferedWriter):
    """A binary file that knows how much it was given."""

    written = 0

    def write(self, data: Any) -> int:
        self.written += len(data)
        return super().write(data)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A failed write or fsync does not say of what: `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


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


def write_json(path: Place, value: dict[str, Any]) -> None:
    """Canonical JSON with a `seal`, the digest of the rest: a changed digit in it would still be canonical."""
    with atomic_file(path) as file:
        file.write(canonical({**value, "seal": digest(value)}))


def write_report(path: Place, value: dict[str, Any]) -> None:
    """JSON for people and their scripts; nothing in this project reads it back."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")
