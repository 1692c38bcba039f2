"""A bucket or web server, this process's obstore client for it, and what goes wrong in our words.

obstore does the talking: credentials from the environment, retries of 5xx, refused and dropped connections and stalls,
and a body that breaks off goes on by range. It is imported when the first URL is used.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pipeline.errors import StoreError

TIMEOUT, CONNECT_TIMEOUT = 30.0, 10.0  # seconds of one request, whole, and of one connection
MAX_RETRIES, RETRY_TIMEOUT = 10, 180.0  # of one request; seconds over all of its retries
# Which of obstore's settings an `endpoint` of ours is.
ENDPOINTS = {"s3": "endpoint", "gs": "base_url", "az": "endpoint"}

_clients: dict[Store, Any] = {}
_talked: set[int] = set()  # processes that have used obstore; a fork inherits the set, but not obstore's threads


@dataclass(frozen=True)
class Store:
    """A bucket or host, and how to reach it. Holds no credentials and no connection, so it may be pickled.

    `local`: folder of a bounded disk cache for what is read (pipeline/storage/disk_cache.py), `local_bytes` its bound.
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
    "169.254.169.254 | metadata.google | MissingAccount":
        "no credentials or account in the environment; set them as obstore documents",
    "PermissionDenied | Unauthenticated | 403 Forbidden":
        "forbidden; check the credentials in the environment (a store that one may not list also answers so for an "
        "object that is missing: allow listing)",
    "Range request not supported": "this server does not serve byte ranges; use one that does, or copy the cache here",
    "NotImplemented | NotSupported | status code: 501":
        "this store lacks a needed operation (conditional put); use another store",
    "dns error": "no such host; check the URL and the endpoint",
    "BadScheme": "plain http is refused; set AWS_ALLOW_HTTP=true, or cache.store endpoint='http://...'",
    "kind: Timeout | TimedOut": "timed out, also after retries; is the server up?",
    "ConnectionRefused": "connection refused, also after retries; is the server up?",
    "kind: Connect": "no connection, also after retries; is the server up?",
    "kind: Request | body error": "the connection broke off, also after retries; is the server up?",
}  # fmt: skip
