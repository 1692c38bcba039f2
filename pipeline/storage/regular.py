"""Open, create and delete files without following links, so that nothing below a folder leads out of it.

The last part of a path is never followed as a link, and what was opened must be a regular file: a FIFO would block, and
a device could be endless. Temporary files get unguessable names and must not exist before.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from pathlib import Path

from pipeline.errors import CorruptCache

TEMPORARY = re.compile(r".+\.[0-9a-f]{16}\.tmp")
KINDS = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
KINDS |= {stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file and return its descriptor. Raise CorruptCache for a link, FIFO, device, socket or folder."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise irregular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise irregular(path)
    return handle


def irregular(path: Path, expected: str = "a regular file") -> CorruptCache:
    """Make the error for a path that is something else than expected."""
    try:
        found = KINDS.get(stat.S_IFMT(os.lstat(path).st_mode), "another kind of file")
    except OSError:
        found = "another kind of file"
    return CorruptCache(f"{path}: expected {expected}, found {found}; remove it, or use another folder")


def temporary_name(path: Path) -> Path:
    """Return an unguessable name beside `path` for a file or folder that will be renamed to it."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")


def create(path: Path) -> int:
    """Create a new file and return its descriptor. Raise FileExistsError where anything has that name."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def remove(path: Path) -> None:
    """Delete a file or link, but not what it points to, through a handle of its folder. It may be missing."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise irregular(path.parent, "a folder") from error
        raise
    try:
        os.unlink(path.name, dir_fd=folder)
    except FileNotFoundError:
        pass
    finally:
        os.close(folder)


def remove_temporary(folder: Path) -> None:
    """Delete temporary files and folders that killed runs left in a folder. Call it with the folder's lock."""
    for entry in list(os.scandir(folder)) if folder.is_dir() else []:
        if TEMPORARY.fullmatch(entry.name):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                remove(Path(entry.path))


def require_plain(path: Path) -> None:
    """Raise CorruptCache where a file or folder, or anything in the folder, is a link, FIFO, device or socket."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:  # another process may delete a temporary file meanwhile
        return
    if stat.S_ISDIR(mode):
        for name in os.listdir(path):
            require_plain(path / name)
    elif not stat.S_ISREG(mode):
        raise irregular(path, "a regular file or folder")
