"""Storage in an object store, or behind a web server to read only, through obstore."""

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

PART = 16 << 20  # of a multipart upload: 10,000 of them make 160 GB


@dataclass(frozen=True)
class RemoteLock:
    """A lease; `place` writes under its claim, and so does a pickled copy of it in another process."""

    place: RemotePath

    def share(self) -> RemotePath:
        return self.place


@dataclass(frozen=True)
class ObjectStorage:
    """Objects of a bucket, or files of a web server. Writes check first that every claim of `claims` is still held.

    Failures raise StoreError in one line, without the server's own text (it may quote a request).
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

    def remedy(self, key: str, advice: str) -> str:
        """`repair` needs a local folder, so another advice helps here."""
        name = key.rpartition("/")[2]
        if self.read_only:
            return "replace it on the server by an intact copy"
        if name == "zarr.json" or "." not in name:  # a table of codec/
            return f"delete the cache's codec.json and {AGAIN}"
        return advice if advice == AGAIN else f"delete this object and {AGAIN}"

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
        def ask(client: Any) -> tuple[bytes, int]:
            found = client.get(key, options={"range": (offset, offset + size)})
            return self._body(key, found, size), int(found.meta["size"])

        return self.connection.request(key, ask)

    def read_tagged(self, key: str, limit: int) -> tuple[bytes, str | None]:
        """A whole object and its e_tag."""

        def ask(client: Any) -> tuple[bytes, str | None]:
            found = client.get(key)
            return self._body(key, found, limit), found.meta["e_tag"]

        return self.connection.request(key, ask)

    def open_ranges(self, key: str, layout: ShardLayout) -> RemoteRanges:
        return RemoteRanges(self, key, layout, self.connection.disk)

    @contextmanager
    def write_atomic(self, key: str) -> Iterator[Any]:
        """In an unnamed temporary file, so that a killed process leaves nothing; then one put, which is atomic."""
        folder = Path(tempfile.gettempdir())
        with naming(folder), tempfile.TemporaryFile(dir=folder) as file:
            yield file
            self._require_claims()
            file.seek(0)
            self.put(key, file)

    @contextmanager
    def write_folder(self, key: str) -> Iterator[Path]:
        """File by file, so readers wait for another file that lists these. Objects of other names are kept."""
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
        """The claims came with the place."""
        return nullcontext()

    def put(self, key: str, content: Any, mode: Any = "overwrite") -> str | None:
        """Bytes or an open file, in one atomic put that checks no claim. Returns the e_tag.

        mode 'create': raises FileExistsError where the object exists; {'e_tag': ...}: where it has another e_tag.
        """
        more = {"use_multipart": False} if isinstance(content, bytes) else {"chunk_size": PART, "max_concurrency": 4}
        return self.connection.request(
            key, lambda client: client.put(key, content, mode=mode, **more)["e_tag"], retry_body=False
        )

    def remove(self, key: str) -> None:
        """Delete an object if it exists; checks no claim."""
        try:
            self.connection.request(key, lambda client: client.delete(key))
        except FileNotFoundError:
            return

    def _require_claims(self) -> None:
        for claim in self.claims:
            claim.require(self)

    def _body(self, key: str, found: Any, limit: int) -> bytes:
        """What a server sends, if it is at most `limit` bytes; the size that the server declares is not trusted."""
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
            f"{self.describe(key)}: the server sends more than the expected {limit} bytes; is it the right URL?"
        )
