"""The lock of a local folder: an flock on its `.lock`, which ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from functools import partial
from pathlib import Path
from weakref import ref

from pipeline.errors import CacheError


class Flock:
    """An flock on `folder`. `how`: flags of fcntl.flock. Raises CacheError where another process holds it."""

    def __init__(self, folder: Path, how: int) -> None:
        self.place = folder
        # A shared flock needs a file open for reading on some file systems, an exclusive one a file open for writing.
        self._file = open(folder / ".lock", "a+")  # noqa: SIM115 (the lock is held as long as it is open)
        # Otherwise a loader's worker would keep the lock of a run that was killed.
        os.register_at_fork(after_in_child=partial(_close_in_child, ref(self)))
        try:
            self._flock(how)
        except CacheError:
            self.close()
            raise

    def share(self) -> Path:
        """Nobody else gets the lock then before the last process that joins has ended, in whatever order they end."""
        self._flock(fcntl.LOCK_SH | fcntl.LOCK_NB)  # the kernel releases it for a moment: another may get it
        return self.place

    def close(self) -> None:
        self._file.close()

    def _flock(self, how: int) -> None:
        try:
            fcntl.flock(self._file, how)
        except OSError as error:
            raise CacheError(f"{self.place}: another process is writing this cache; wait for it or stop it") from error


def _close_in_child(lock: ref[Flock]) -> None:
    """Runs in every fork; the reference is dead when the lock was released long ago."""
    held = lock()
    if held is not None:
        held.close()
