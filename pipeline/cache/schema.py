"""Required fields of a cache's JSON files. A seal detects changes, but not who wrote the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.budget import BUDGET, excess
from pipeline.cache.canonical import read_json
from pipeline.cache.plausible import read_channels
from pipeline.errors import CorruptCache
from pipeline.storage.place import DELETE, Place, remedy
from pipeline.text import one_line


@dataclass(frozen=True)
class Number:
    """A number from `least` to `most`, a whole number unless `whole` is False. With `or_null`, null as well."""

    least: float
    most: float
    whole: bool = True
    or_null: bool = False

    def matches(self, value: Any) -> bool:
        """Return whether a JSON value is such a number. True and False are none."""
        if value is None:
            return self.or_null
        typed = type(value) is int or (type(value) is float and not self.whole)
        return typed and self.least <= value <= self.most


COUNT = Number(0, 1 << 53)
PLACE = Number(1, 1 << 20)  # pixels of a side, samples of a batch or shard
VIEWS = Number(1, 1 << 53, or_null=True)
ID = Number(-(1 << 62), 1 << 62)  # of an image
SEED = Number(-(1 << 63), (1 << 63) - 1)
VIEW = Number(0, 1 << 31)
MEASURED = Number(0, 1e9, whole=False)  # an error, a share or bytes for each position

# {"name": ...}: this field is required, others are allowed. {str: ...}: any names. {pattern: ...}: names that match.
# [...]: a list of any length. (...): a list of exactly these values. A union: a value of one of these types. Numbers
# have a range, so that sums and products of them are numbers too.
TABLE = re.compile(r"(\w+/)?(zarr\.json|c(/\d+)*)")
FILE = re.compile(r"(plan|quarantine)\.json|shard-\d{5,9}\.(tar|json)")
PLAN = {
    "recipe": {
        "teacher": {"name": str | None},
        "data": {"annotations_sha256": str},
        "views": {"finite": VIEWS},
        "codec": {"type": str},
    },
    "recipe_digest": str,
    "teacher_sha256": str,
    "layout": {"batch_size": PLACE, "shard_samples": COUNT, "seed": SEED},
}
CODEC = {"settings": {"type": str, "channels": COUNT, "score_channels": COUNT}, "files": {TABLE: str}}
FITTED = {"settings": {"probe_error": {"feature": MEASURED}, "quality": int | float | str, "feature_rank": COUNT}}
SCORED = {"settings": {"probe_error": {"score": MEASURED}, "score_rank": COUNT}}
SHARES = {str: MEASURED}  # by loss or tensor
CALIBRATED = ("bytes_per_position", "errors")  # in `measured`, where they are present
STUDENTS = {"settings": {"probe_unexplained": SHARES, "near_error": SHARES, "near_unexplained": SHARES}}
MANIFEST = {
    "pass": COUNT,
    "plan": str,
    "files": {FILE: {"bytes": COUNT, "sha256": str}},
    "samples": COUNT,
    "bytes": COUNT,
    "bytes_by_array": {str: COUNT},
    "raw_fp16_bytes": COUNT,
    "measured": SHARES,
    "quarantine": [(ID, str)],
    "environment": {str: str},
}
PASS_PLAN = {"pass": COUNT, "shards": [[((PLACE, PLACE), [(ID, VIEW)])]]}
IMAGE_PLAN = {"shards": [[ID]]}
IMAGE_MANIFEST = {"plan": str, "files": {FILE: {"bytes": COUNT, "sha256": str}}, "images": COUNT, "bytes": COUNT}
QUARANTINE = {"images": [(ID, str)]}
GATE = {"mAP": Number(-1, 1, whole=False), "images": COUNT}
SIDECAR = {
    "shard": str,
    "plan": str,
    "codec": str,
    "size": COUNT,
    "sha256": str,
    "head": {},
    "tail": {},
    "samples": [[int | str]],
    "bytes_by_array": {str: Number(0, 1 << 40)},
    "measured": SHARES,
}


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
    measured = value.get("measured", {})
    require_fields(measured, {}, path)
    require_fields(measured, {name: SHARES for name in CALIBRATED if name in measured}, path)
    return value


def require_fields(value: Any, wanted: Any, path: Place) -> None:
    """Raise CorruptCache where a JSON value does not match one of the descriptions above."""
    wrong = find_mismatch(value, wanted)
    if wrong is not None:
        raise CorruptCache(f"{path}: field {one_line(wrong) or '(all)'} is missing or invalid; {remedy(path, DELETE)}")


def find_mismatch(value: Any, wanted: Any, name: str = "") -> str | None:
    """Return the name of the first field that does not match one of the descriptions above, None if all do."""
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
    elif isinstance(wanted, Number):
        fits = wanted.matches(value)
    elif isinstance(wanted, re.Pattern):
        fits = isinstance(value, str) and wanted.fullmatch(value) is not None
    else:
        kinds = (int, float) if wanted is float else wanted
        fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not fits:
        return name.lstrip(".")
    return next((found for part in inner if (found := find_mismatch(*part)) is not None), None)
