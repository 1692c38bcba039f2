"""Required fields of a cache's JSON files. A seal detects changes, but not who wrote the file."""

from __future__ import annotations

import re
from typing import Any

from pipeline.budget import BUDGET, excess
from pipeline.cache.canonical import read_json
from pipeline.cache.plausible import read_channels
from pipeline.errors import CorruptCache
from pipeline.storage.place import DELETE, Place, remedy
from pipeline.text import one_line

# {"name": ...}: this field is required, others are allowed. {str: ...}: any names. {pattern: ...}: names that match.
# [...]: a list of any length. (...): a list of exactly these values. A union: a value of one of these types.
TABLE = re.compile(r"(\w+/)?(zarr\.json|c(/\d+)*)")
FILE = re.compile(r"(plan|quarantine)\.json|shard-\d{5,9}\.(tar|json)")
PLAN = {
    "recipe": {
        "teacher": {"name": str | None},
        "data": {"annotations_sha256": str},
        "views": {"finite": int | None},
        "codec": {"type": str},
    },
    "recipe_digest": str,
    "teacher_sha256": str,
    "layout": {"batch_size": int, "shard_samples": int, "seed": int},
}
CODEC = {"settings": {"type": str, "channels": int, "score_channels": int}, "files": {TABLE: str}}
FITTED = {"settings": {"probe_error": {"feature": float}, "quality": int | float | str, "feature_rank": int}}
SCORED = {"settings": {"probe_error": {"score": float}, "score_rank": int}}
SHARES = {str: float}  # by loss or tensor
STUDENTS = {"settings": {"probe_unexplained": SHARES, "near_error": SHARES, "near_unexplained": SHARES}}
MANIFEST = {
    "pass": int,
    "plan": str,
    "files": {FILE: {"bytes": int, "sha256": str}},
    "samples": int,
    "bytes": int,
    "bytes_by_array": {str: int},
    "raw_fp16_bytes": int,
    "measured": {str: float},
    "quarantine": [(int, str)],
    "environment": {str: str},
}
PASS_PLAN = {"pass": int, "shards": [[((int, int), [(int, int)])]]}
IMAGE_PLAN = {"shards": [[int]]}
IMAGE_MANIFEST = {"plan": str, "files": {FILE: {"bytes": int, "sha256": str}}, "images": int, "bytes": int}
QUARANTINE = {"images": [(int, str)]}
GATE = {"mAP": float, "images": int}


def read_fields(path: Place, wanted: dict[Any, Any], sha256: str | None = None) -> dict[str, Any]:
    """Read a JSON file and check its fields against `wanted`. Raise CacheError or CorruptCache."""
    large = (BUDGET.plan_bytes, BUDGET.plan_values) if wanted in (PASS_PLAN, IMAGE_PLAN) else ()
    value = read_json(path, sha256, *large)
    require_fields(value, wanted, path)
    return value


def read_codec(path: Place) -> dict[str, Any]:
    """Read codec.json and check the fields of a calibrated codec that `info` prints. Raise CacheError, CorruptCache."""
    value = read_fields(path, CODEC)
    try:
        read_channels(value["settings"])
    except ValueError as error:
        raise CorruptCache(f"{path}: settings.{error}; {remedy(path, DELETE)}") from error
    wrong = excess("files of codec/", len(value["files"]), BUDGET.table_files)
    if wrong is not None:
        raise CorruptCache(f"{path}: {wrong}; {remedy(path, DELETE)}")
    if "probe_error" in value["settings"]:
        require_fields(value, FITTED, path)
        require_fields(value, {"settings": {"probe_error": SHARES}}, path)
        if value["settings"].get("scores", True):
            require_fields(value, SCORED, path)
        if "near_error" in value["settings"]:
            require_fields(value, STUDENTS, path)
    return value


def require_fields(value: Any, wanted: Any, path: Place) -> None:
    """Raise CorruptCache where a JSON value does not match one of the descriptions above."""
    wrong = _wrong(value, wanted, "")
    if wrong is not None:
        raise CorruptCache(f"{path}: field {one_line(wrong) or '(all)'} is missing or invalid; {remedy(path, DELETE)}")


def _wrong(value: Any, wanted: Any, name: str) -> str | None:
    """Return the name of the first field that does not match."""
    inner: list[tuple[Any, Any, str]] = []
    if isinstance(wanted, dict):
        named: Any = next(iter(wanted), "")
        fits = isinstance(value, dict)
        if fits and isinstance(named, str):
            fits = wanted.keys() <= value.keys()
            inner = [(value.get(key), part, f"{name}.{key}") for key, part in wanted.items()]
        elif fits:
            fits = named is str or all(named.fullmatch(key) for key in value)
            inner = [(part, wanted[named], f"{name}.{key:.40}") for key, part in value.items()]
    elif isinstance(wanted, list | tuple):
        fits = isinstance(value, list) and (isinstance(wanted, list) or len(value) == len(wanted))
        parts = wanted * len(value) if fits and isinstance(wanted, list) else wanted
        inner = [(part, kind, f"{name}[{n}]") for n, (part, kind) in enumerate(zip(value, parts))] if fits else []
    else:
        kinds = (int, float) if wanted is float else wanted
        fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not fits:
        return name.lstrip(".")
    return next((found for part in inner if (found := _wrong(*part)) is not None), None)
