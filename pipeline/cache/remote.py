"""A place in an object store or behind an HTTP server: what pathlib.Path is for a folder, as far as a cache needs it.

obstore does the talking: credentials from the environment, retries of 5xx, refused and dropped connections and stalls,
and a body that breaks off goes on by range. It is imported when the first URL is used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pipeline.errors import StoreError

TIMEOUT, CONNECT_TIMEOUT = 30.0, 10.0  # seconds of one request, whole, and of one connection
MAX_RETRIES, RETRY_TIMEOUT = 10, 180.0  # of one request; seconds over all of its retries
BODY_RETRIES = 3  # obstore goes on inside a body only where the server names an ETag
PART = 16 << 20  # of a multipart upload: 10,000 of them make 160 GB
RANGE = 8 << 20  # of one request where a whole file is read
# Which of obstore's settings an `endpoint` of ours is.
ENDPOINTS = {"s3": "endpoint", "gs": "base_url", "az": "endpoint"}

T = TypeVar("T")
_clients: dict[Store, Any] = {}
_talked: set[int] = set()  # processes that have used obstore; a fork inherits the set, but not obstore's threads


@dataclass(frozen=True)
class Store:
    """A bucket or host, and how to reach it. Holds no credentials and no connection, so it may be pickled.

    `local`: folder of a bounded disk cache for what is read (pipeline/cache/disk.py), `local_bytes` its bound.
    """

    url: str  # "s3://bucket", "http://host:port"
    options: tuple[tuple[str, Any], ...] = ()
    local: str | None = None
    local_bytes: int = 0
    begun: float = field(default_factory=time.time, compare=False)  # of the run, also in its workers

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    def client(self) -> Any:
        """This process's own obstore client. Raises StoreError in a process that cannot have one."""
        if os.getpid() not in _talked:
            if _talked:  # it would wait for ever for threads that a fork does not copy
                raise StoreError(
                    f"{self.url}: this process was forked from one that had already read an object store, and "
                    "obstore's threads do not survive a fork; start it with 'spawn' or 'forkserver'"
                )
            _talked.add(os.getpid())
        if self not in _clients:
            _clients[self] = self._connect()
        return _clients[self]

    def _connect(self) -> Any:
        from obstore.store import HTTPStore, from_url

        given: dict[str, Any] = {"timeout": TIMEOUT, "connect_timeout": CONNECT_TIMEOUT, "max_retries": MAX_RETRIES,
                                 "retry_timeout": RETRY_TIMEOUT, **dict(self.options)}  # fmt: skip
        endpoint = str(given.get("endpoint", ""))
        settings: dict[str, Any] = {
            "client_options": {
                "timeout": timedelta(seconds=given["timeout"]),
                "connect_timeout": timedelta(seconds=given["connect_timeout"]),
                "allow_http": self.scheme == "http" or endpoint.startswith("http://") or _http_by_environment(),
            },
            "retry_config": {
                "max_retries": given["max_retries"],
                "retry_timeout": timedelta(seconds=given["retry_timeout"]),
            },
        }
        if self.scheme in ("http", "https"):
            return HTTPStore(f"{self.url}/", **settings)
        names = {"endpoint": ENDPOINTS[self.scheme], "region": "region", "skip_signature": "skip_signature"}
        config: Any = {own: given[name] for name, own in names.items() if name in given}
        return from_url(self.url, config=config or None, **settings)


def _http_by_environment() -> bool:
    """obstore reads AWS_ALLOW_HTTP itself only where no other client option is given."""
    names = ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in names)


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

    __fspath__ = None  # nothing may take it for a local path

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

    def read_bytes(self) -> bytes:
        """The whole object, of any size. Raises FileNotFoundError where there is none."""
        return self._ask(lambda client: bytes(client.get(self.key).bytes()))

    def read_range(self, offset: int, size: int) -> tuple[bytes, int]:
        """Up to `size` bytes from `offset`, and the size of the whole object."""

        def ask(client: Any) -> tuple[bytes, int]:
            found = client.get(self.key, options={"range": (offset, offset + size)})
            return bytes(found.bytes()), int(found.meta["size"])

        return self._ask(ask)

    def read_tagged(self) -> tuple[bytes, str | None]:
        """The whole object and its e_tag."""

        def ask(client: Any) -> tuple[bytes, str | None]:
            found = client.get(self.key)
            return bytes(found.bytes()), found.meta["e_tag"]

        return self._ask(ask)

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
            except (BaseError, ValueError) as error:
                if left and retry_body and isinstance(error, GenericError) and "body error" in str(error):
                    continue
                raise StoreError(f"{self}: {reason(error, self.store)}") from None
        raise AssertionError("unreachable")


def reason(error: Exception, store: Store) -> str:
    """What went wrong and what to do, from obstore's exception. Never its text: a server's answer may quote keys."""
    text = f"{type(error).__name__}: {error}"
    for words, told in REASONS.items():
        if any(word in text for word in words.split(" | ")):
            return told
    status = text.partition("status code: ")[2][:3]
    if status.isdigit():
        return f"the server answers with HTTP status {status}, also after retries; try again later"
    return f"{store.url} cannot be used ({type(error).__name__}); check URL, endpoint and credentials"


# What obstore's text contains, tried in this order: what we say.
REASONS = {
    "PermissionDenied | Unauthenticated | 403 Forbidden":
        "forbidden; check the credentials in the environment (a store that one may not list also answers so for an "
        "object that is missing: allow listing)",
    "Range request not supported": "this server does not serve byte ranges; use one that does, or copy the cache here",
    "NotImplemented | NotSupported | status code: 501":
        "this store lacks a needed operation (conditional put); use another store",
    "169.254.169.254 | metadata.google | MissingAccount":
        "no credentials or account in the environment; set them as obstore documents",
    "dns error": "no such host; check the URL and the endpoint",
    "BadScheme": "plain http is refused; set AWS_ALLOW_HTTP=true, or cache.store endpoint='http://...'",
    "kind: Timeout | TimedOut": "timed out, also after retries; is the server up?",
    "ConnectionRefused": "connection refused, also after retries; is the server up?",
    "kind: Connect": "no connection, also after retries; is the server up?",
    "kind: Request | body error": "the connection broke off, also after retries; is the server up?",
}  # fmt: skip
