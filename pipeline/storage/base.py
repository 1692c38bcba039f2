"""The Storage protocol: what a cache needs of the place where its bytes are stored, and paths into a storage.

Two implementations: LocalStorage (local.py), a folder, and ObjectStorage (object_store.py), an object store or web
server. tests/storage/test_storage.py has the tests that both pass; a third one is added there and in urls.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

AGAIN = "run stage 1 again"
DELETE = f"delete it and {AGAIN}"
REPAIR = "`python -m pipeline repair --config C` repairs it"


@dataclass(frozen=True)
class Extent:
    """`size` bytes at `offset` of a shard. `image_id` and `view` are those of a sample, -1 in head and tail."""

    offset: int
    size: int
    crc32c: int
    image_id: int = -1
    view: int = -1


Fetched = Mapping[int, bytes]  # offset of an extent: its bytes, not yet checked


class ShardLayout(Protocol):
    """What a sidecar says about the bytes of its shard; the extents cover it without gaps."""

    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def extents(self) -> tuple[Extent, ...]: ...


class Ranges(Protocol):
    """The bytes of one open shard. Thread-safe. The caller compares each crc32c."""

    @property
    def size(self) -> int: ...
    @property
    def local(self) -> bool: ...  # whether a read is free of a round trip

    def read(self, extent: Extent) -> bytes:
        """Raise CacheError where the shard is missing, CorruptCache where the bytes cannot be read."""

    def fetches(self, extents: Sequence[Extent]) -> list[Callable[[], Fetched]]:
        """Calls, one for each request, that prefetch these extents in any thread; none where reads are local."""

    def close(self) -> None: ...


class Lock(Protocol):
    """The right to write a folder, held by one run."""

    @property
    def place(self) -> Place:
        """The folder. Paths made from it check before each write and delete that the lock is still held."""

    def share(self) -> Place:
        """Let other processes of this run hold the lock too. Returns what they pass to `joined`; it can be pickled."""


class Storage(Protocol):
    """Files by key ("pass-0/plan.json"; "" is the storage's root). Can be pickled; a copy opens its own connection.

    A missing file raises FileNotFoundError. Other failures raise another OSError (local) or a StoreError (remote).
    """

    @property
    def max_requests(self) -> int: ...  # useful at a time; 1: reads are local, prefetching gains nothing
    @property
    def fork_safe(self) -> bool: ...  # whether a fork of a process that has read may read too
    @property
    def read_only(self) -> bool: ...

    def place(self, key: str) -> Place:
        """The path of a key."""

    def describe(self, key: str) -> str:
        """The path or URL of a key, for messages."""

    def local_path(self, key: str) -> Path | None:
        """The file or folder that the operating system opens; None where there is none."""

    def remedy(self, key: str, advice: str) -> str:
        """What to do about a bad file of a cache; `advice`: what helps in a local folder."""

    def size(self, key: str) -> int: ...

    def read(self, key: str, limit: int, sha256: str | None = None) -> bytes:
        """A whole file. Raise CorruptCache if it has more than `limit` bytes.

        `sha256`, where known, allows the answer to come from a disk cache; the caller still compares it.
        """

    def read_range(self, key: str, offset: int, size: int) -> tuple[bytes, int]:
        """Up to `size` bytes from `offset`, which lies in the file or is 0, and the size of the whole file."""

    def open_ranges(self, key: str, layout: ShardLayout) -> Ranges: ...

    def write_atomic(self, key: str) -> AbstractContextManager[Any]:
        """A binary file to fill. It appears, complete and durable, when the block ends; after an error it does not."""

    def write_folder(self, key: str) -> AbstractContextManager[Path]:
        """A local folder to fill. Its files replace those of `key` when the block ends; after an error they do not."""

    def delete(self, key: str) -> None:
        """Delete a file if it exists."""

    def list_dir(self, key: str) -> list[str] | None:
        """Names in a folder, folders with a trailing "/"; none if it is missing.

        None where names must be known: a web server cannot list, and reading a bucket does not require that right.
        """

    def lock(self, key: str, wait: bool) -> AbstractContextManager[Lock]:
        """Lock a folder for writing. Raise CacheError where another run holds the lock, unless `wait`."""

    def join(self, key: str) -> AbstractContextManager[None]:
        """Hold a lock that another process shares."""


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of a storage. Methods named as in pathlib do what they do there."""

    storage: Storage
    key: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.storage, self.key.rpartition("/")[0])

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.storage, f"{self.key}/{name}" if self.key else name)

    def with_suffix(self, suffix: str) -> RemotePath:
        return RemotePath(self.storage, str(PurePosixPath(self.key).with_suffix(suffix)))

    def __str__(self) -> str:
        return self.storage.describe(self.key)

    def exists(self) -> bool:
        try:
            self.storage.size(self.key)
        except FileNotFoundError:
            return False
        return True

    is_file = exists


Place = Path | RemotePath
