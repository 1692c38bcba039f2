"""Names of files in a cache, and the passes that exist."""

from __future__ import annotations

from pathlib import Path
from typing import overload

from pipeline.budget import BUDGET, excess, parse_json
from pipeline.cache.schema import PASS_PLAN, read_fields
from pipeline.cache.shard_plan import ShardPlan
from pipeline.errors import CacheError, CorruptCache, StoreError
from pipeline.storage.files import read_small
from pipeline.storage.place import AGAIN, REPAIR, Place, key_of, remedy, storage_of

MANY = 32  # after this many passes, a name that no cache has is requested once
CODEC_COPY = "codec-copy"  # codec.json and codec/ once more, where their tables cannot be calibrated again


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
    if numbers:
        _require_few_passes(root, numbers[-1] + 1)
    return [(number, (pass_folder(root, number) / "manifest.json").is_file()) for number in numbers]


def probe_passes(root: Place, views: int | None) -> list[tuple[int, bool]]:
    """Return (number, whether it is complete) of every pass, by requesting the known names.

    `views`: the largest number of passes. None: stop at the first pass that is missing and not in summary.json.
    Raise CorruptCache where there are more than BUDGET.passes: some servers answer every name.
    """
    found, known = [], known_passes(root) if views is None else 0
    for number in range(min(views or BUDGET.passes, BUDGET.passes)):
        if number == MANY and (pass_folder(root, BUDGET.passes) / "manifest.json").exists():
            _require_few_passes(root, BUDGET.passes + 1)
        folder = pass_folder(root, number)
        complete = (folder / "manifest.json").exists()
        if complete or (folder / "plan.json").exists():
            found.append((number, complete))
        elif views is None and number >= known:
            break
    return found


def _require_few_passes(root: Place, number: int) -> None:
    """Raise CorruptCache where there would be more passes than the budget allows."""
    wrong = excess("passes", number, BUDGET.passes)
    if wrong is not None:
        raise CorruptCache(f"{root}: {wrong}; check that this is a cache, or that its URL is right")


def read_recorded_passes(root: Place) -> int | None:
    """Return the number of passes in summary.json; None if there is no such file. Raise CorruptCache, StoreError."""
    path = root / "summary.json"
    if not path.exists():
        return None
    try:
        passes = parse_json(read_small(path))["passes"]
        if type(passes) is int and 0 < passes <= BUDGET.passes:
            return passes
    except StoreError:
        raise
    except (CacheError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CorruptCache(f"{path}: expected a JSON object with a number of passes; {remedy(path, AGAIN)}")


def known_passes(root: Place) -> int:
    """Return the number of passes in summary.json; 0 if the file is missing or damaged."""
    try:
        return read_recorded_passes(root) or 0
    except CorruptCache:
        return 0


def explain_missing(root: Place, name: str) -> CacheError:
    """Return the error of a cache without plan.json or codec.json: stage 1 stopped early, or the file was lost.

    Stage 1 writes gate.json, plan.json and codec.json in this order, and starts no pass before.
    """
    listed = list_passes(root)
    later = bool(listed) if listed is not None else bool(probe_passes(root, 1))
    if later or (name == "plan.json" and (root / "codec.json").exists()):
        return CorruptCache(f"{root / name}: missing, but the cache has later files; {remedy(root / name, REPAIR)}")
    if name == "codec.json" or (root / "gate.json").exists():
        return CacheError(f"{root}: stage 1 has not finished calibration ({name} is missing); {remedy(root, AGAIN)}")
    return CacheError(f"{root}: no cache here ({name} is missing); run stage 1 first")
