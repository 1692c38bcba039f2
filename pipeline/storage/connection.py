"""The connection to a bucket or web server: one client for each process.

A web server and an S3 endpoint have a client that follows no redirect (http_client.py), gs:// and az:// one of obstore.
obstore takes credentials from the environment, and signs the requests of S3. The clients retry 5xx answers, refused and
dropped connections, and stalls. An interrupted body is requested again. obstore is imported when the first URL of a
bucket is used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import cache, cached_property
from typing import Any, TypeVar
from urllib.parse import quote

from pipeline.errors import PipelineError, StoreError
from pipeline.storage.disk_cache import DiskCache
from pipeline.storage.http_client import HttpClient, Patience
from pipeline.storage.http_connection import INTERRUPTED, InterruptedBody
from pipeline.storage.obstore_errors import is_interrupted_body, translate_error
from pipeline.storage.s3_client import S3Client, make_signer

T = TypeVar("T")

BODY_RETRIES = 3  # after an interrupted body

# Seconds for one request, seconds for one connection, number of retries, seconds for all retries.
DEFAULTS = {"timeout": 30.0, "connect_timeout": 10.0, "max_retries": 10, "retry_timeout": 180.0}
# obstore's names of the option `endpoint`.
ENDPOINTS = {"s3": "endpoint", "gs": "base_url", "az": "endpoint"}


@dataclass(frozen=True)
class Connection:
    """How to reach a bucket or web server. Contains no credentials. A pickled copy opens its own client.

    `local`: folder of the disk cache for remote reads (pipeline/storage/disk_cache.py). `local_bytes`: its size limit.
    """

    url: str  # "s3://bucket", "http://host:port"
    options: tuple[tuple[str, Any], ...] = ()
    local: str | None = None
    local_bytes: int = 0
    begun: float = field(default_factory=time.time, compare=False)  # start of the run, the same in its workers

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    def client(self) -> Any:
        """Return this process's obstore client. Raise StoreError in a process forked from one that used obstore."""
        if runtime_process() != os.getpid():  # a fork does not copy threads, so a request would wait forever
            raise StoreError(
                f"{self.url}: this process was forked after its parent used an object store, and obstore's threads do "
                "not survive a fork; start it with 'spawn' or 'forkserver'"
            )
        return self._client

    @cached_property
    def disk(self) -> DiskCache | None:
        """The disk cache for reads over this connection; None if `cache.local` is not set."""
        return DiskCache(self.local, self.local_bytes, self.begun) if self.local else None

    def request(self, key: str, call: Callable[[Any], T], retry_body: bool = True) -> T:
        """Return `call(client)`, and translate obstore's exceptions. `retry_body`: `call` may run more than once."""
        for left in reversed(range(BODY_RETRIES + 1)):
            try:
                return call(self.client())
            except PipelineError:
                raise
            except InterruptedBody:
                if not (left and retry_body):
                    raise StoreError(f"{self.url}/{key}: {INTERRUPTED}") from None
            except BaseException as error:
                if not (left and retry_body and is_interrupted_body(error)):
                    raise translate_error(error, f"{self.url}/{key}", self.url) from None
        raise AssertionError("unreachable")

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def _client(self) -> Any:
        given: dict[str, Any] = {**DEFAULTS, **dict(self.options)}
        patience = Patience(*(given[name] for name in DEFAULTS))
        spans = {name: timedelta(seconds=given[name]) for name in DEFAULTS if name != "max_retries"}
        if self.scheme in ("http", "https"):
            return HttpClient(self.url, lambda _, key: f"{self.url}/{quote(key)}", patience)
        from obstore.store import from_url

        endpoint = str(given.get("endpoint", ""))
        settings: dict[str, Any] = {
            "client_options": {
                "timeout": spans["timeout"],
                "connect_timeout": spans["connect_timeout"],
                "allow_http": endpoint.startswith("http://") or _allows_http(),
            },
            "retry_config": {"max_retries": given["max_retries"], "retry_timeout": spans["retry_timeout"]},
        }
        names = {"endpoint": ENDPOINTS[self.scheme], "region": "region", "skip_signature": "skip_signature"}
        config: Any = {own: given[name] for name, own in names.items() if name in given}
        if self.scheme != "s3":
            return from_url(self.url, config=config or None, **settings)
        if _is_set("AWS_SKIP_SIGNATURE"):
            config.setdefault("skip_signature", True)
        store, anonymous = make_signer(lambda config: from_url(self.url, config=config or None, **settings), config)
        return S3Client(self.url, store, patience, anonymous, settings["client_options"]["allow_http"])


@cache
def runtime_process() -> int:
    """Return the process that started obstore's threads, which is the first caller. A fork inherits this number."""
    return os.getpid()


def _allows_http() -> bool:
    """Return whether the environment allows plain http. obstore ignores it if any other client option is given."""
    return any(map(_is_set, ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP")))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
