"""Files of this machine: durable writes, checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's bytes, or a rename in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Counted(BufferedWriter):
    """A binary file that knows how much it was given."""

    written = 0

    def write(self, data: Any) -> int:
        self.written += len(data)
        return super().write(data)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A failed write or fsync does not say of what: `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
