"""A place in an object store or behind a web server: what pathlib.Path is for a folder, as far as a cache needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pipeline.errors import CorruptCache, StoreError
from pipeline.storage.client import Store, reason

BODY_RETRIES = 3  # obstore goes on inside a body only where the server names an ETag
PART = 16 << 20  # of a multipart upload: 10,000 of them make 160 GB
RANGE = 8 << 20  # of one request where a whole file is read

T = TypeVar("T")


@dataclass(frozen=True)
class RemotePath:
    """One object, or the part of a name before one. Methods named as in pathlib do what they do there.

    Every method that talks raises StoreError in one line, without the server's own text (it may quote a request).
    """

    store: Store
    key: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.store, self.key.rpartition("/")[0])

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.store, f"{self.key}/{name}" if self.key else name)

    def with_suffix(self, suffix: str) -> RemotePath:
        return RemotePath(self.store, str(PurePosixPath(self.key).with_suffix(suffix)))

    def __str__(self) -> str:
        return f"{self.store.url}/{self.key}"

    def exists(self) -> bool:
        try:
            self.size()
        except FileNotFoundError:
            return False
        return True

    is_file = exists

    def size(self) -> int:
        """Bytes of the object. Raises FileNotFoundError where there is none."""
        return self._ask(lambda client: int(client.head(self.key)["size"]))

    def read_bytes(self, most: int) -> bytes:
        """The whole object. Raises FileNotFoundError where there is none, CorruptCache if it is over `most` bytes."""
        return self._ask(lambda client: self._body(client.get(self.key), most))

    def read_range(self, offset: int, size: int) -> tuple[bytes, int]:
        """Up to `size` bytes from `offset`, and the size of the whole object."""

        def ask(client: Any) -> tuple[bytes, int]:
            found = client.get(self.key, options={"range": (offset, offset + size)})
            return self._body(found, size), int(found.meta["size"])

        return self._ask(ask)

    def read_tagged(self, most: int) -> tuple[bytes, str | None]:
        """The same, and its e_tag."""

        def ask(client: Any) -> tuple[bytes, str | None]:
            found = client.get(self.key)
            return self._body(found, most), found.meta["e_tag"]

        return self._ask(ask)

    def _body(self, found: Any, most: int) -> bytes:
        """What a server sends, as long as it is no more than it may be: its own word is not taken for that."""
        first, last = found.range
        data = bytearray()
        if last - first <= most:
            for part in found:
                data += part
                if len(data) > most:
                    break
            else:
                return bytes(data)
        raise CorruptCache(
            f"{self}: the server sends more than the {most} bytes that it may have; is it the right URL?"
        )

    def put(self, content: Any, mode: Any = "overwrite") -> str | None:
        """Bytes or an open file, whole or not at all. Returns the e_tag.

        mode 'create': raises FileExistsError where there is one; {'e_tag': ...}: where it is not that one.
        """
        more = {"use_multipart": False} if isinstance(content, bytes) else {"chunk_size": PART, "max_concurrency": 4}
        return self._ask(lambda client: client.put(self.key, content, mode=mode, **more)["e_tag"], retry_body=False)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask(lambda client: client.delete(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def _ask(self, question: Callable[[Any], T], retry_body: bool = True) -> T:
        """Put a question to the store and turn what goes wrong into our errors."""
        from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError

        for left in reversed(range(BODY_RETRIES + 1)):
            try:
                return question(self.store.client())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
                    raise StoreError(f"{self}: no such bucket {self.store.url}; create it first") from None
                raise FileNotFoundError(2, "no such object", str(self)) from None
            except (AlreadyExistsError, PreconditionError):
                raise FileExistsError(17, "another process was first", str(self)) from None
            except (BaseError, ValueError, OverflowError) as error:  # the last two: what it cannot take
                if left and retry_body and isinstance(error, GenericError) and "body error" in str(error):
                    continue
                raise StoreError(f"{self}: {reason(error, self.store)}") from None
            except BaseException as error:
                if type(error).__name__ != "PanicException":
                    raise
                raise StoreError(f"{self}: obstore gave up; is an address in the environment malformed?") from None
        raise AssertionError("unreachable")
