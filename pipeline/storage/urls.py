"""Convert a path or URL that a user wrote to a Place. Register a new storage here, by its scheme."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import ConfigError
from pipeline.storage.base import Place, RemotePath
from pipeline.storage.connection import Connection
from pipeline.storage.object_store import ObjectStorage
from pipeline.storage.place import storage_of

SCHEMES = ("s3", "gs", "az", "http", "https")
# Keys of cache.store. Credentials are not allowed, because configs are copied into logs.
OPTIONS: dict[str, type] = {
    "endpoint": str,
    "region": str,
    "skip_signature": bool,
    "timeout": float,
    "connect_timeout": float,
    "max_retries": int,
    "retry_timeout": float,
}
FORMS = {"endpoint": re.compile(r"https?://[\w.:\[\]-]+(/[\w./-]*)?"), "region": re.compile(r"[\w-]+")}
SHOWN = {"endpoint": "http(s)://host[:port]", "region": "a region's name"}
GB = 10**9


def place(
    where: str | Path | RemotePath, options: dict[str, Any] | None = None, local: str | None = None, local_gb: float = 0
) -> Place:
    """Return a path or URL as a Place. Other arguments are for URLs. Raise ConfigError, without any secret in it."""
    if isinstance(where, RemotePath):
        return where
    scheme, found, _ = str(where).partition("://")
    if isinstance(where, Path) or not found:
        return Path(where)
    host, key = check_url(str(where))
    checked = tuple(sorted(check_options(options or {}, scheme).items()))
    storage = ObjectStorage(Connection(f"{scheme}://{host}", checked, local, int(local_gb * GB)))
    return RemotePath(storage, key)


def check_url(url: str) -> tuple[str, str]:
    """Return (bucket or host, key) of a URL. Raise ConfigError, without any secret in it."""
    scheme, _, rest = url.partition("://")
    head, *tail = re.split("[?#]", rest, maxsplit=1)
    hidden = any("@" in part for part in tail)  # a password may contain ? or #; `head` then starts with the user name
    shown = f"{scheme}://{'...' if hidden else head.rpartition('@')[2]}"
    if scheme not in SCHEMES:
        raise ConfigError(f"{shown}: expected a path, or a URL with one of {SCHEMES}, found {scheme}://")
    try:
        parts = urlsplit(url)
    except ValueError:  # an unbalanced bracket; the original message may quote a password
        raise ConfigError(f"{shown}: invalid URL; expected {scheme}://bucket-or-host/path") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(f"{shown}: expected no user, password or query; set credentials in the environment")
    if not parts.netloc:
        raise ConfigError(f"{shown}: expected a bucket or host after {scheme}://")
    return parts.netloc, "/".join(part for part in parts.path.split("/") if part)


def check_options(options: dict[str, Any], scheme: str) -> dict[str, Any]:
    """Check the keys of cache.store for one scheme, and return them. Raise ConfigError that names the key."""
    known = set(OPTIONS) - ({"endpoint", "region", "skip_signature"} if scheme.startswith("http") else set())
    known -= {"region"} if scheme != "s3" else set()
    for key, value in options.items():
        if key not in known:
            raise ConfigError(
                f"cache.store.{key}: unknown key for {scheme}://; expected one of {sorted(known)}. Set credentials in "
                "the environment"
            )
        kind = OPTIONS[key]
        number = kind is float and isinstance(value, int) and not isinstance(value, bool)
        if not number and type(value) is not kind:
            raise ConfigError(f"cache.store.{key}: expected {kind.__name__}, found {value!r}")
        if isinstance(value, int | float) and value < (0 if kind in (int, bool) else 0.001):
            raise ConfigError(f"cache.store.{key}: expected a larger number, found {value!r}")
        if isinstance(value, str) and not FORMS[key].fullmatch(value):
            raise ConfigError(f"cache.store.{key}: expected {SHOWN[key]}, found {value!r}")
    return options


def require_writable(where: Place) -> None:
    """Raise ConfigError for http(s)://, which has neither atomic writes nor a lock."""
    if storage_of(where).read_only:
        raise ConfigError(f"{where}: http(s):// is read-only; use a folder or an s3://, gs:// or az:// URL")
