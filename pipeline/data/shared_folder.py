"""The folder on this machine in which ranks and later starts find the parsed annotation file of a cache."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.sections import Sections
from pipeline.storage.files import local_path


def shared_folder(sections: Sections) -> Path | None:
    """Return the folder on this machine for the parsed annotation file: beside the cache, or beside its disk cache.

    Where both are missing, it is a folder of this user among the temporary files.
    """
    local = local_path(sections.cache.place()) or sections.cache.local
    if local is None:
        return private_folder()
    path = Path(os.path.abspath(local))
    return path.with_name(f"{path.name}.images") if path.name else None


def private_folder() -> Path | None:
    """Return this user's folder for temporary files of remote caches; None where others could write into it."""
    path = Path(tempfile.gettempdir()) / f"frs-teacher-cache-{os.getuid()}"
    with suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return path
    return None
