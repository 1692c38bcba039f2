"""Storage in an object store, or read-only on a web server."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import CorruptCache
from pipeline.storage.base import AGAIN, RemotePath, ShardLayout
from pipeline.storage.connection import Connection
from pipeline.storage.lease import Claim, hold_lease
from pipeline.storage.local import naming
from pipeline.storage.ranges import RemoteRanges

PART = 16 << 20  # bytes of a part of a multipart upload; the limit of 10,000 parts allows 160 GB


@dataclass(frozen=True)
class RemoteLock:
    """A lease on a folder. Writes through `place`, or through a pickled copy of it, check the lease first."""

    place: RemotePath

    def share(self) -> RemotePath:
        return self.place


@dataclass(frozen=True)
class ObjectStorage:
    """Objects of a bucket, or files of a web server. Each write first checks that every claim in `claims` is valid.

    Failures raise a one-line StoreError without the server's own text, which may quote credentials.
    """

    connection: Connection
    claims: tuple[Claim, ...] = field(default=(), compare=False)
    max_requests: ClassVar[int] = 16
    fork_safe: ClassVar[bool] = False

    @property
    def read_only(self) -> bool:
        return self.connection.scheme in ("http", "https")

    def place(self, key: str) -> RemotePath:
        return RemotePath(self, key)

    def describe(self, key: str) -> str:
        return f"{self.connection.url}/{key}"

    def local_path(self, key: str) -> None:
        return None

    def remedy(self, key: str, local: str) -> str:
        """Return what to do about a bad object. `repair` needs a local folder, so it is never suggested."""
        name = key.rpartition("/")[2]
        if self.read_only:
            return "replace it on the server with an intact copy"
        if name == "zarr.json" or "." not in name:  # a table of codec/
            return f"delete the cache's codec.json and {AGAIN}"
        return local if local == AGAIN else f"delete this object and {AGAIN}"

    def size(self, key: str) -> int:
        return self.connection.request(key, lambda client: int(client.head(key)["size"]))

    def read(self, key: str, limit: int, sha256: str | None = None) -> bytes:
        disk = self.connection.disk if sha256 else None
        stored = disk.read_small(sha256) if disk and sha256 else None
        if stored is not None:
            return stored
        data = self.connection.request(key, lambda client: self._body(key, client.get(key), limit))
        if disk and sha256 and hashlib.sha256(data).hexdigest() == sha256:
            disk.keep_small(sha256, data)
        return data

    def read_range(self, key: str, offset: int, size: int) -> tuple[bytes, int]:
        def request(client: Any) -> tuple[bytes, int]:
            found = client.get(key, options={"range": (offset, offset + size)})
            return self._body(key, found, size), int(found.meta["size"])

        return self.connection.request(key, request)

    def read_tagged(self, key: str, limit: int) -> tuple[bytes, str | None]:
        """Read a whole object. Return its bytes and its e_tag."""

        def request(client: Any) -> tuple[bytes, str | None]:
            found = client.get(key)
            return self._body(key, found, limit), found.meta["e_tag"]

        return self.connection.request(key, request)

    def open_ranges(self, key: str, layout: ShardLayout) -> RemoteRanges:
        return RemoteRanges(self, key, layout, self.connection.disk)

    @contextmanager
    def write_atomic(self, key: str) -> Iterator[Any]:
        """Write to an unnamed temporary file, which disappears with the process, then upload it in one atomic put."""
        folder = Path(tempfile.gettempdir())
        with naming(folder), tempfile.TemporaryFile(dir=folder) as file:
            yield file
            self._require_claims()
            file.seek(0)
            self.put(key, file)

    @contextmanager
    def write_folder(self, key: str) -> Iterator[Path]:
        """Upload the files one by one. A file that lists them must be written later. Other objects are not deleted."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            yield folder
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                with self.write_atomic(f"{key}/{path.relative_to(folder).as_posix()}") as file:
                    file.write(path.read_bytes())

    def delete(self, key: str) -> None:
        self._require_claims()
        self.remove(key)

    def list_dir(self, key: str) -> None:
        return None

    @contextmanager
    def lock(self, key: str, wait: bool) -> Iterator[RemoteLock]:
        with hold_lease(self, key, wait) as claim:
            yield RemoteLock(replace(self, claims=(*self.claims, claim)).place(key))

    def join(self, key: str) -> AbstractContextManager[None]:
        """Return an empty context: `place` already contains the claims."""
        return nullcontext()

    def put(self, key: str, content: Any, mode: Any = "overwrite") -> str | None:
        """Put bytes or an open file atomically, without checking claims. Return the e_tag.

        Raise FileExistsError with mode 'create' where the object exists, with {'e_tag': ...} where its e_tag differs.
        """
        settings = (
            {"use_multipart": False} if isinstance(content, bytes) else {"chunk_size": PART, "max_concurrency": 4}
        )
        return self.connection.request(
            key, lambda client: client.put(key, content, mode=mode, **settings)["e_tag"], retry_body=False
        )

    def remove(self, key: str) -> None:
        """Delete an object if it exists, without checking claims."""
        try:
            self.connection.request(key, lambda client: client.delete(key))
        except FileNotFoundError:
            return

    def _require_claims(self) -> None:
        for claim in self.claims:
            claim.require(self)

    def _body(self, key: str, found: Any, limit: int) -> bytes:
        """Read an answer of at most `limit` bytes. Does not trust the size that the server declares."""
        first, last = found.range
        data = bytearray()
        if last - first <= limit:
            for part in found:
                data += part
                if len(data) > limit:
                    break
            else:
                return bytes(data)
        raise CorruptCache(
            f"{self.describe(key)}: the server sends more than the {limit} bytes expected; check that the URL is right"
        )
