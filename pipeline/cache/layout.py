"""Names inside a cache, and which passes are there."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import overload

from pipeline.cache.schema import PASS_PLAN, read_fields
from pipeline.cache.shard_plan import ShardPlan
from pipeline.storage.object_store import RemotePath
from pipeline.storage.place import Place


@overload
def pass_folder(root: Path, cache_pass: int) -> Path: ...


@overload
def pass_folder(root: Place, cache_pass: int) -> Place: ...


def pass_folder(root: Place, cache_pass: int) -> Place:
    return root / f"pass-{cache_pass}"


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def load_pass_plan(root: Place, cache_pass: int, sha256: str | None = None) -> list[ShardPlan]:
    rows = read_fields(pass_folder(root, cache_pass) / "plan.json", PASS_PLAN, sha256)
    return [ShardPlan.from_json(shard) for shard in rows["shards"]]


def found_passes(root: Path) -> list[tuple[int, bool]]:
    """(number, whether it is complete) of every pass in a folder."""
    names = {path.name.removeprefix("pass-") for path in root.glob("pass-*")}
    numbers = sorted(int(name) for name in names if name.isdecimal())
    return [(number, (pass_folder(root, number) / "manifest.json").is_file()) for number in numbers]


def asked_passes(root: RemotePath, views: int | None) -> list[tuple[int, bool]]:
    """The same from afar, by known names, as a web server cannot list.

    `views`: there are no more passes than that; None: as many as follow each other without a gap.
    """
    found = []
    for number in count() if views is None else range(views):
        folder = pass_folder(root, number)
        complete = (folder / "manifest.json").exists()
        if complete or (folder / "plan.json").exists():
            found.append((number, complete))
        elif views is None:
            break
    return found
