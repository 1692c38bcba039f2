"""Names inside a cache, and which passes are there."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import overload

from pipeline.cache.schema import PASS_PLAN, read_fields
from pipeline.cache.shard_plan import ShardPlan
from pipeline.storage.place import Place, key_of, storage_of


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


def list_passes(root: Place) -> list[tuple[int, bool]] | None:
    """(number, whether it is complete) of every pass in a folder; None where its storage does not list."""
    names = storage_of(root).list_dir(key_of(root))
    if names is None:
        return None
    found = {name.rstrip("/").removeprefix("pass-") for name in names if name.startswith("pass-")}
    numbers = sorted(int(name) for name in found if name.isdecimal())
    return [(number, (pass_folder(root, number) / "manifest.json").is_file()) for number in numbers]


def probe_passes(root: Place, views: int | None) -> list[tuple[int, bool]]:
    """The same by known names, where the storage does not list.

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
