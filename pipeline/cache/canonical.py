"""JSON with one spelling and a seal: two equal values have equal bytes, a changed byte is found."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.errors import CorruptCache
from pipeline.storage.files import atomic_file, read_small
from pipeline.storage.place import DELETE, Place, remedy


def canonical(value: Any) -> bytes:
    """The one way this project writes a JSON value; two equal values have equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def read_json(path: Place, sha256: str | None = None) -> Any:
    """Read a JSON object that `write_json` wrote, without its seal. `sha256`: of its bytes, where a manifest gives it.

    Raises CacheError where the file is missing, CorruptCache where a byte of it was changed.
    """
    raw = read_small(path, sha256)
    try:
        value = json.loads(raw)
        intact = canonical(value) == raw and value.pop("seal") == digest(value)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise CorruptCache(f"{path}: not the JSON that was written (truncated or altered); {remedy(path, DELETE)}")
    return value


def write_json(path: Place, value: dict[str, Any]) -> None:
    """Canonical JSON with a `seal`, the digest of the rest: a changed digit in it would still be canonical."""
    with atomic_file(path) as file:
        file.write(canonical({**value, "seal": digest(value)}))


def write_report(path: Place, value: dict[str, Any]) -> None:
    """JSON for people and their scripts; nothing in this project reads it back."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")
