"""Find damaged files in a cache's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.budget import BUDGET
from pipeline.cache.schema import read_codec
from pipeline.errors import CacheError, CorruptCache, StoreError
from pipeline.storage.files import checksum


def find_sidecar_paths(folders: list[Path]) -> list[Path]:
    """List the sidecars of all shards in the folders, including missing ones of existing tars."""
    found = {path for folder in folders for path in folder.glob("shard-*.*") if path.suffix in (".tar", ".json")}
    return sorted({path.with_suffix(".json") for path in found})


def read_intact_codec(root: Path) -> dict[str, Any]:
    """Read codec.json. Raise CorruptCache where a table is missing or changed."""
    manifest = read_codec(root / "codec.json")
    for name, sha in manifest["files"].items():
        if not (root / "codec" / name).is_file() or sha256_or_none(root / "codec" / name, BUDGET.table_bytes) != sha:
            raise CorruptCache(f"{root / 'codec' / name}: missing or changed")
    return manifest


def find_foreign_files(folder: Path, listed: dict[str, str]) -> list[Path]:
    """List files that are not in a codec's manifest. Stage 1 rejects a codec that has any."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).as_posix() not in listed)


def sha256_or_none(path: Path, most: int | None = None) -> str | None:
    """Return the sha256 of a file, or None where it is missing. Raise OSError where its state is unknown.

    A file of more than `most` bytes is not read: it has no sha256 that anything expects.
    """
    try:
        return checksum(path, most=most)["sha256"] or "too large"
    except FileNotFoundError:
        return None


def read_or_none(read: Callable[[], Any]) -> Any:
    """Call `read` and return its result, or None where the file is missing or damaged.

    Raise StoreError where its state is unknown: a good file must not be discarded because a disk did not answer once.
    """
    try:
        return read()
    except StoreError:
        raise
    except CacheError:
        return None
