"""Storage in a folder of this machine: durable atomic writes, an flock."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import CorruptCache
from pipeline.storage.base import ShardLayout
from pipeline.storage.flock import Flock
from pipeline.storage.ranges import LocalRanges


@dataclass(frozen=True)
class LocalStorage:
    """Files below `folder`; a key may also be an absolute path."""

    folder: Path = Path()
    max_requests: ClassVar[int] = 1
    fork_safe: ClassVar[bool] = True
    read_only: ClassVar[bool] = False

    def place(self, key: str) -> Path:
        return self.folder / key

    def describe(self, key: str) -> str:
        return str(self.place(key))

    def local_path(self, key: str) -> Path:
        return self.place(key)

    def remedy(self, key: str, advice: str) -> str:
        return advice

    def size(self, key: str) -> int:
        return self.place(key).stat().st_size

    def read(self, key: str, limit: int, sha256: str | None = None) -> bytes:
        with open(self.place(key), "rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise CorruptCache(f"{self.describe(key)}: expected at most {limit} bytes, found more")
            return file.read()

    def read_range(self, key: str, offset: int, size: int) -> tuple[bytes, int]:
        with open(self.place(key), "rb") as file:
            whole = os.fstat(file.fileno()).st_size
            return os.pread(file.fileno(), max(0, min(size, whole - offset)), offset), whole

    def open_ranges(self, key: str, layout: ShardLayout) -> LocalRanges:
        return LocalRanges(self.place(key))

    @contextmanager
    def write_atomic(self, key: str) -> Iterator[Any]:
        """Under a temporary name, synced, then renamed."""
        path = self.place(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with naming(path):
                with Counted(FileIO(temporary, "w")) as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    found = os.fstat(file.fileno()).st_size
                    if found != file.written:
                        raise OSError(errno.EIO, f"short write: expected {file.written} bytes, got {found}")
                os.replace(temporary, path)
                sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @contextmanager
    def write_folder(self, key: str) -> Iterator[Path]:
        """Under a temporary name that is left after a failure, synced, then renamed."""
        path = self.place(key)
        temporary = path.with_name(path.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        with naming(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                sync(file)
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            sync(path.parent)

    def delete(self, key: str) -> None:
        self.place(key).unlink(missing_ok=True)

    def list_dir(self, key: str) -> list[str]:
        try:
            entries = list(os.scandir(self.place(key)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries)

    @contextmanager
    def lock(self, key: str, wait: bool) -> Iterator[Flock]:
        self.place(key).mkdir(parents=True, exist_ok=True)
        lock = Flock(self.place(key), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        try:
            yield lock
        finally:
            lock.close()

    @contextmanager
    def join(self, key: str) -> Iterator[None]:
        lock = Flock(self.place(key), fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            yield
        finally:
            lock.close()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's bytes, or a rename in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Counted(BufferedWriter):
    """A binary file that counts the bytes it was given."""

    written = 0

    def write(self, data: Any) -> int:
        self.written += len(data)
        return super().write(data)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to the error of a failed write or fsync, which does not name a file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
