"""A bucket or web server, this process's obstore client for it, and one-line reasons for obstore's errors.

obstore takes credentials from the environment, retries 5xx, refused and dropped connections and stalls, and resumes a
body that breaks off by range. It is imported when the first URL is used.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import cache, cached_property
from typing import Any

from pipeline.errors import StoreError
from pipeline.storage.disk_cache import DiskCache

# Seconds of one request and of one connection; retries of one request, and seconds over all of them.
DEFAULTS = {"timeout": 30.0, "connect_timeout": 10.0, "max_retries": 10, "retry_timeout": 180.0}
# obstore's name of our option `endpoint`.
ENDPOINTS = {"s3": "endpoint", "gs": "base_url", "az": "endpoint"}


@dataclass(frozen=True)
class Connection:
    """How to reach a bucket or web server. Contains no credentials; a pickled copy opens a client of its own.

    `local`: folder of a disk cache for what is read (pipeline/storage/disk_cache.py), `local_bytes` its limit.
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
        if runtime_process() != os.getpid():  # it would wait forever for threads that a fork does not copy
            raise StoreError(
                f"{self.url}: this process was forked from one that had already read an object store, and "
                "obstore's threads do not survive a fork; start it with 'spawn' or 'forkserver'"
            )
        return self._client

    @cached_property
    def disk(self) -> DiskCache | None:
        """The disk cache of what is read here, if there is one."""
        return DiskCache(self.local, self.local_bytes, self.begun) if self.local else None

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def _client(self) -> Any:
        from obstore.store import HTTPStore, from_url

        given: dict[str, Any] = {**DEFAULTS, **dict(self.options)}
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


@cache
def runtime_process() -> int:
    """The process that started obstore's threads: the first one that asks. A fork inherits this number, not them."""
    return os.getpid()


def _http_by_environment() -> bool:
    """obstore reads AWS_ALLOW_HTTP itself only where no other client option is given."""
    names = ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in names)


def reason(error: Exception, url: str) -> str:
    """The reason and the advice for an obstore error. Never its own text: a server's answer may quote keys."""
    text = f"{type(error).__name__}: {error}"
    for words, advice in REASONS:
        if any(word in text for word in words):
            return advice
    status = text.partition("status code: ")[2][:3]
    if status.isdigit():
        return f"the server answers with HTTP status {status}, also after retries; try again later"
    return f"{url} cannot be used ({type(error).__name__}); check URL, endpoint and credentials"


# Tried in this order: words of obstore's text, and the reason that is given.
REASONS = (
    (
        ("169.254.169.254", "metadata.google", "MissingAccount"),
        "no credentials or account in the environment; set them as obstore documents",
    ),
    (
        ("PermissionDenied", "Unauthenticated", "403 Forbidden"),
        "forbidden; check the credentials in the environment (without the right to list, a store also answers so for a "
        "missing object: allow listing)",
    ),
    (
        ("Range request not supported",),
        "this server does not serve byte ranges; use one that does, or copy the cache here",
    ),
    (
        ("NotImplemented", "NotSupported", "status code: 501"),
        "this store lacks a needed operation (conditional put); use another store",
    ),
    (("dns error",), "no such host; check the URL and the endpoint"),
    (("BadScheme",), "plain http is refused; set AWS_ALLOW_HTTP=true, or cache.store endpoint='http://...'"),
    (("kind: Timeout", "TimedOut"), "timed out, also after retries; is the server up?"),
    (("ConnectionRefused",), "connection refused, also after retries; is the server up?"),
    (("kind: Connect",), "no connection, also after retries; is the server up?"),
    (("kind: Request", "body error"), "the connection broke off, also after retries; is the server up?"),
)
