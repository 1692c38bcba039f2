"""Read students from their work dirs: mmengine's scalars.json and stage 2's summary.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.budget import BUDGET, excess, json_excess
from pipeline.cache.cache import Cache
from pipeline.errors import CacheError

Curve = tuple[list[float], list[float]]


LARGEST = 1e15  # of a number in a page
NUMBER: Any = ((int, float), "a number")
FIELDS: dict[str, Any] = {
    **{key: NUMBER for key in ("mAP", "AP50", "epochs", "images_per_second")},
    "content": ((str, type(None)), "a digest or null"),
    "feature_loss": ((str,), "a name"),
    "work_dir": ((str,), "a path"),
}
DEFAULTS = {"AP50": 0.0, "epochs": 0, "images_per_second": 0.0, "work_dir": "", "feature_loss": "frs"}


@dataclass
class Student:
    """A finished run. `teacher`: 'this cache', 'another cache' or 'live teacher'; `curves`: (steps, values) by name."""

    name: str
    teacher: str
    summary: dict[str, Any]
    curves: dict[str, Curve] = field(default_factory=dict)


def find_students(folders: Iterable[str], cache: Cache) -> list[Student]:
    """Return every finished run below the folders, best first. Raise CacheError where a folder has none."""
    known = {cache.content(), *cache.pass_contents().values()}
    found = []
    for folder in folders:
        paths = sorted(Path(folder).rglob("summary.json"))
        runs = [
            (path.parent, row) for path in paths for row in parse_row(_read(path)) if {"mAP", "content"} <= row.keys()
        ]
        if not runs:
            raise CacheError(f"{folder}: expected the work dir of a student, found no summary.json of stage 2")
        found += [load_student(path, summary, known) for path, summary in runs]
    names = [s.name for s in found]
    for student in found:
        if names.count(student.name) > 1:
            student.name = str(student.summary["work_dir"])
    return sorted(found, key=lambda s: -s.summary["mAP"])


def load_student(path: Path, summary: dict[str, Any], known: set[str]) -> Student:
    """Read the curves of a finished run. known: the content digests of the cache and of its passes.

    Raise CacheError where a field of summary.json has another type than stage 2 writes.
    """
    for key, (kinds, words) in FIELDS.items():
        if key in summary and (not isinstance(summary[key], kinds) or isinstance(summary[key], bool)):
            found = f"{summary[key]!r:.40}"
            raise CacheError(f"{path / 'summary.json'}: {key}: expected {words}, found {found}; run stage 2 again")
        if isinstance(summary.get(key), int | float) and not abs(summary[key]) < LARGEST:  # NaN as well
            raise CacheError(f"{path / 'summary.json'}: {key}: expected {words}, found another; run stage 2 again")
    passes = summary.get("passes")
    used = set(map(str, passes.values())) if isinstance(passes, dict) and passes else {summary["content"]}
    teacher = "live teacher" if not summary["content"] else "this cache" if used <= known else "another cache"
    return Student(path.name, teacher, {**DEFAULTS, **summary}, load_curves(path))


def _read(path: Path) -> bytes:
    """Read a file of a work dir. Raise CacheError where it is larger than the budget allows."""
    size = path.stat().st_size
    wrong = excess("bytes", size, BUDGET.json_bytes)
    if wrong is not None:
        raise CacheError(f"{path}: {wrong}; expected a file of stage 2")
    return path.read_bytes()


def parse_row(text: bytes) -> list[dict[str, Any]]:
    """Parse a JSON object. Return an empty list for an incomplete line, as a killed or running process leaves it."""
    try:
        row = None if json_excess(text) else json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [row] if isinstance(row, dict) else []


def load_curves(work_dir: Path) -> dict[str, Curve]:
    """Read the curves of a run. If a step was repeated after a resume, its last record is used."""
    points: dict[str, dict[float, float]] = {}
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        raw = _read(path)
        wrong = json_excess(raw)
        if wrong is not None:
            raise CacheError(f"{path}: {wrong}; log less often, or leave this student out")
        for row in (row for line in raw.splitlines() for row in parse_row(line)):
            for name, value in row.items():
                if name not in ("step", "iter", "epoch") and _plottable(value) and _plottable(row.get("step")):
                    points.setdefault(name, {})[row["step"]] = value
    return {name: ([*sorted(rows)], [rows[step] for step in sorted(rows)]) for name, rows in points.items()}


def _plottable(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
