"""Names of files in a cache, and the passes that exist."""

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
    """Return the folder of a pass."""
    return root / f"pass-{cache_pass}"


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.tar"


def load_pass_plan(root: Place, cache_pass: int, sha256: str | None = None) -> list[ShardPlan]:
    """Read the shard plans of a pass. `sha256`: that of plan.json in the manifest, if there is one."""
    rows = read_fields(pass_folder(root, cache_pass) / "plan.json", PASS_PLAN, sha256)
    return [ShardPlan.from_json(shard) for shard in rows["shards"]]


def list_passes(root: Place) -> list[tuple[int, bool]] | None:
    """Return (number, whether it is complete) of every pass in a folder; None if the storage cannot list."""
    names = storage_of(root).list_dir(key_of(root))
    if names is None:
        return None
    found = {name.rstrip("/").removeprefix("pass-") for name in names if name.startswith("pass-")}
    numbers = sorted(int(name) for name in found if name.isdecimal())
    return [(number, (pass_folder(root, number) / "manifest.json").is_file()) for number in numbers]


def probe_passes(root: Place, views: int | None) -> list[tuple[int, bool]]:
    """Return (number, whether it is complete) of every pass, by requesting the known names.

    `views`: the largest number of passes. None: stop at the first pass that is missing.
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
