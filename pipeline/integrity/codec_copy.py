"""The second copy of a codec whose tables cannot be calibrated again.

A trained network does not repeat on another machine. A cache with one therefore has codec-copy/, which contains
codec.json and codec/ once more. Each copy restores the other.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.cache.canonical import digest
from pipeline.cache.layout import CODEC_COPY
from pipeline.errors import CorruptCache
from pipeline.integrity.damage import read_intact_codec, read_or_none
from pipeline.storage.files import atomic_file, atomic_folder


def check_copy(root: Path, manifest: dict[str, Any]) -> None:
    """Raise CorruptCache where the copy of a codec, if there is one, differs from codec.json, `manifest`."""
    folder = root / CODEC_COPY
    if not folder.exists():
        return
    found = read_or_none(lambda: read_intact_codec(folder))
    if found is None or digest(found) != digest(manifest):
        raise CorruptCache(f"{folder}: differs from {root / 'codec'}; run repair, which copies it again")


def renew_copy(root: Path, manifest: dict[str, Any], needed: bool) -> bool:
    """Copy an intact codec again where its copy is damaged, or missing although `needed`. Return whether it was."""
    try:
        check_copy(root, manifest)
        if (root / CODEC_COPY).exists() or not needed:
            return False
    except CorruptCache:
        pass
    _copy(root, root / CODEC_COPY)
    return True


def restore_codec(root: Path, wanted: str | None) -> bool:
    """Restore codec/ and codec.json from an intact copy of digest `wanted` (None: any). Return whether there is one."""
    found = read_or_none(lambda: read_intact_codec(root / CODEC_COPY))
    if found is None or wanted not in (None, digest(found)):
        return False
    _copy(root / CODEC_COPY, root)
    return True


def _copy(source: Path, target: Path) -> None:
    """Copy codec/, then codec.json."""
    with atomic_folder(target / "codec") as folder:
        shutil.copytree(source / "codec", folder, dirs_exist_ok=True)
    with atomic_file(target / "codec.json") as file:
        file.write((source / "codec.json").read_bytes())
