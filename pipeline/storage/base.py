"""The Storage protocol, which every storage of a cache implements, and paths within a storage.

There are two implementations: LocalStorage (local.py), a folder, and ObjectStorage (object_store.py), an object store
or web server. Both pass tests/storage/test_storage.py. To add a third one, register it there and in urls.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from pipeline.storage.extents import Extent, Fetched

AGAIN = "run stage 1 again"
DELETE = f"delete it and {AGAIN}"
REPAIR = "`python -m pipeline repair --config C` repairs it"


class ShardLayout(Protocol):
    """The extents of a shard, from its sidecar. They cover the shard without gaps."""

    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def extents(self) -> tuple[Extent, ...]: ...


class Ranges(Protocol):
    """The bytes of one open shard. Thread-safe. The caller checks each extent."""

    @property
    def size(self) -> int: ...
    @property
    def local(self) -> bool: ...  # whether a read needs no network round trip

    def read(self, extent: Extent) -> bytes:
        """Read an extent. Raise CacheError where the shard is missing, CorruptCache where the bytes cannot be read."""

    def fetches(self, extents: Sequence[Extent]) -> list[Callable[[], Fetched]]:
        """Return calls, one for each request, that prefetch these extents in any thread. Empty if reads are local."""

    def close(self) -> None: ...


class Lock(Protocol):
    """The exclusive right of one run to write a folder."""

    @property
    def place(self) -> Place:
        """The folder. Paths below it check before each write and delete that the run still has the lock."""

    def share(self) -> Place:
        """Let other processes of this run share the lock. Return the argument for their `joined`; it can be pickled."""


class Storage(Protocol):
    """Files by key, for example "pass-0/plan.json"; "" is the root. Can be pickled; a copy opens its own connection.

    A missing file raises FileNotFoundError. Other failures raise another OSError (local) or a StoreError (remote). A
    local link, FIFO, device, socket or folder instead of a file raises CorruptCache.
    """

    @property
    def max_requests(
        self,
    ) -> int: ...  # useful concurrent requests; 1 for local reads, where prefetching has no benefit
    @property
    def fork_safe(self) -> bool: ...  # whether a process that has read may fork, and the child may read
    @property
    def read_only(self) -> bool: ...

    def place(self, key: str) -> Place:
        """Return the path of a key."""

    def describe(self, key: str) -> str:
        """Return the path or URL of a key, for messages."""

    def local_path(self, key: str) -> Path | None:
        """Return the local file or folder of a key; None if the storage is remote."""

    def remedy(self, key: str, local: str) -> str:
        """Return what to do about a bad file of a cache. `local`: the instruction for a local folder."""

    def size(self, key: str) -> int: ...

    def read(self, key: str, limit: int, sha256: str | None = None) -> bytes:
        """Read a whole file. Raise CorruptCache where it has more than `limit` bytes.

        If `sha256` is given, the file may come from a disk cache. The caller still checks the sha256.
        """

    def read_range(self, key: str, offset: int, size: int) -> tuple[bytes, int]:
        """Read up to `size` bytes at `offset`, which is within the file or 0. Return them and the size of the file."""

    def open_ranges(self, key: str, layout: ShardLayout) -> Ranges: ...

    def write_atomic(self, key: str) -> AbstractContextManager[Any]:
        """Open a binary file for writing. It appears, complete and durable, when the block ends without an error."""

    def write_folder(self, key: str) -> AbstractContextManager[Path]:
        """Open a local folder for writing. Its files replace those of `key` when the block ends without an error."""

    def delete(self, key: str) -> None:
        """Delete a file if it exists."""

    def list_dir(self, key: str) -> list[str] | None:
        """List the names in a folder, folders with a trailing "/". The list is empty if the folder is missing.

        Return None if the storage does not list: a web server cannot, and readers of a bucket may lack the permission.
        """

    def lock(self, key: str, wait: bool) -> AbstractContextManager[Lock]:
        """Lock a folder for writing. If another run has the lock, wait for it if `wait`, otherwise raise CacheError."""

    def join(self, key: str) -> AbstractContextManager[None]:
        """Join a lock that another process of this run shares."""


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of a storage. Its methods are those of pathlib with the same names."""

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
