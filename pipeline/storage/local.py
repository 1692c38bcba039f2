"""Storage in a local folder, with durable atomic writes and an flock."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import CorruptCache
from pipeline.storage.base import ShardLayout
from pipeline.storage.flock import Flock
from pipeline.storage.ranges import LocalRanges
from pipeline.storage.regular import create, open_regular, remove, temporary_name


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

    def remedy(self, key: str, local: str) -> str:
        return local

    def size(self, key: str) -> int:
        return self.place(key).stat().st_size

    def read(self, key: str, limit: int, sha256: str | None = None) -> bytes:
        with open_reading(self.place(key)) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise CorruptCache(f"{self.describe(key)}: expected at most {limit} bytes, found more")
            return file.readall()

    def read_range(self, key: str, offset: int, size: int) -> tuple[bytes, int]:
        with open_reading(self.place(key)) as file:
            whole = os.fstat(file.fileno()).st_size
            return os.pread(file.fileno(), max(0, min(size, whole - offset)), offset), whole

    def open_ranges(self, key: str, layout: ShardLayout) -> LocalRanges:
        return LocalRanges(self.place(key))

    @contextmanager
    def write_atomic(self, key: str) -> Iterator[Any]:
        """Write the file under a new, temporary name, sync it, then rename it."""
        path = self.place(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        try:
            with naming(path):
                with CountingWriter(FileIO(create(temporary), "w")) as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    found = os.fstat(file.fileno()).st_size
                    if found != file.written:
                        raise OSError(errno.EIO, f"short write: expected {file.written} bytes, got {found}")
                os.replace(temporary, path)
                sync(path.parent)
        except BaseException:
            remove(temporary)
            raise

    @contextmanager
    def write_folder(self, key: str) -> Iterator[Path]:
        """Write the folder under a new name, sync it, then rename it. An error leaves the folder with that name."""
        path = self.place(key)
        temporary = temporary_name(path)
        with naming(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                sync(file)
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            sync(path.parent)

    def delete(self, key: str) -> None:
        remove(self.place(key))

    def list_dir(self, key: str) -> list[str]:
        try:
            entries = list(os.scandir(self.place(key)))
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
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


def open_reading(path: Path) -> FileIO:
    """Open a regular file for reading, and return it unbuffered."""
    return FileIO(open_regular(path), "r")


def sha256_file(path: Path) -> str:
    """Return the sha256 of a local file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Sync a file, or a folder after a rename in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def files_to_keep_open(wanted: int) -> int:
    """Return how many files a process may keep open: `wanted`, or half of its limit where that is lower.

    The soft limit is raised as far as needed and allowed. The other half is for sockets, pipes and images.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 2 * wanted:
        raised = 2 * wanted if hard == resource.RLIM_INFINITY else min(2 * wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft // 2))


class CountingWriter(BufferedWriter):
    """A binary file that counts the bytes written to it."""

    written = 0

    def write(self, data: Any) -> int:
        self.written += len(data)
        return super().write(data)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to an OSError that names no file, as those of write and fsync do."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
