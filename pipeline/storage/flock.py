"""The lock of a local folder: an flock on its `.lock`, which the kernel releases when the process ends."""

from __future__ import annotations

import fcntl
import os
from functools import partial
from io import FileIO
from pathlib import Path
from weakref import ref

from pipeline.errors import CacheError
from pipeline.storage.regular import open_regular


class Flock:
    """An flock on `folder`. `how`: flags of fcntl.flock. Raises CacheError if another process has the lock."""

    def __init__(self, folder: Path, how: int) -> None:
        self.place = folder
        # On some file systems, a shared flock needs a file open for reading, an exclusive one a file open for writing.
        # The lock lasts as long as the file is open.
        self._file = FileIO(open_regular(folder / ".lock", os.O_RDWR | os.O_CREAT), "r+")
        # Without this, a loader's worker would keep the lock of a killed run.
        os.register_at_fork(after_in_child=partial(_close_in_child, ref(self)))
        try:
            self._flock(how)
        except CacheError:
            self.close()
            raise

    def share(self) -> Path:
        """Share the lock. Another run can get it only after all processes that joined have ended."""
        self._flock(
            fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # the kernel may release it for a moment, and another process may get it
        return self.place

    def close(self) -> None:
        self._file.close()

    def _flock(self, how: int) -> None:
        try:
            fcntl.flock(self._file, how)
        except OSError as error:
            raise CacheError(f"{self.place}: another process is writing this cache; wait for it or stop it") from error


def _close_in_child(lock: ref[Flock]) -> None:
    """Close the lock file in a forked child, unless the lock was already released."""
    open_lock = lock()
    if open_lock is not None:
        open_lock.close()
