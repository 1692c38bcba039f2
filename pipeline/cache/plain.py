"""Check that a local cache consists of regular files and folders, and lock it for writing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.storage.base import Lock
from pipeline.storage.files import local_path
from pipeline.storage.lock import locked
from pipeline.storage.place import Place
from pipeline.storage.regular import remove_temporary, require_plain

# Other names are never opened.
OWN = re.compile(r"\.lock|(plan|codec|gate|summary|repair)\.json|codec|codec-copy|images|pass-.*|.*\.tmp")


def require_plain_cache(root: Place) -> None:
    """Raise CorruptCache where something of a local cache is a link, FIFO, device or socket. The root may be a link."""
    folder = local_path(root)
    if folder is None or not folder.is_dir():
        return
    for name in os.listdir(folder):
        if OWN.fullmatch(name):
            require_plain(folder / name)


@contextmanager
def locked_cache(root: Place) -> Iterator[Lock]:
    """Lock a cache for writing, check it with `require_plain_cache`, and delete temporary files of killed runs."""
    require_plain_cache(root)
    with locked(root) as lock:
        folder = local_path(root)
        if folder is not None:
            for place in [folder, folder / "images", *folder.glob("pass-*")]:
                remove_temporary(place)
        yield lock
