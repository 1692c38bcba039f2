"""Canonical JSON with a seal: equal values have equal bytes, and every changed byte is detected."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.budget import BUDGET, json_excess, load_json
from pipeline.errors import CacheError, CorruptCache
from pipeline.storage.files import atomic_file, read_small
from pipeline.storage.place import DELETE, Place, remedy


def canonical(value: Any) -> bytes:
    """Encode a JSON value. Equal values have equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def read_json(
    path: Place, sha256: str | None = None, size: int = BUDGET.json_bytes, values: int = BUDGET.json_values
) -> Any:
    """Read a JSON object that `write_json` wrote, and remove its seal. `sha256`: that of the manifest, if there is one.

    Raise CacheError where the file is missing, CorruptCache where a byte of it was changed, or where it has more than
    `size` bytes or `values` values.
    """
    raw = read_small(path, sha256, size)
    wrong = json_excess(raw, values)
    if wrong is not None:
        raise CorruptCache(f"{path}: {wrong}; {remedy(path, DELETE)}")
    try:
        value = load_json(raw)
        intact = canonical(value) == raw and value.pop("seal") == digest(value)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise CorruptCache(f"{path}: truncated or altered since it was written; {remedy(path, DELETE)}")
    return value


def write_json(path: Place, value: dict[str, Any], values: int = BUDGET.json_values) -> None:
    """Write canonical JSON with a `seal`, the digest of the other fields. The seal detects a changed digit.

    Raise CacheError where it has more than `values` values, because it could not be read again.
    """
    raw = canonical({**value, "seal": digest(value)})
    wrong = json_excess(raw, values)
    if wrong is not None:
        raise CacheError(f"{path}: cannot be written ({wrong}); make a cache of fewer images")
    with atomic_file(path) as file:
        file.write(raw)


def write_report(path: Place, value: dict[str, Any]) -> None:
    """Write JSON for people and their scripts. This project does not read it back."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")
