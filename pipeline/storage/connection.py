"""The connection to a bucket or web server: this process's obstore client for it.

obstore takes credentials from the environment, retries 5xx, refused and dropped connections and stalls, and resumes a
body that breaks off by range. It is imported when the first URL is used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import cache, cached_property
from typing import Any, TypeVar

from pipeline.errors import PipelineError, StoreError
from pipeline.storage.disk_cache import DiskCache
from pipeline.storage.obstore_errors import broke_off, translated

T = TypeVar("T")

BODY_RETRIES = 3  # obstore resumes inside a body only where the server names an ETag

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

    def request(self, key: str, call: Callable[[Any], T], retry_body: bool = True) -> T:
        """`call(client)`, with obstore's exceptions turned into ours. `retry_body`: whether it may be called again."""
        for left in reversed(range(BODY_RETRIES + 1)):
            try:
                return call(self.client())
            except PipelineError:
                raise
            except BaseException as error:
                if not (left and retry_body and broke_off(error)):
                    raise translated(error, f"{self.url}/{key}", self.url) from None
        raise AssertionError("unreachable")

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
