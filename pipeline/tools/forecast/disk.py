"""What the disk under a cache has left, and how fast it takes bytes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

PROBE = 64 * 2**20  # bytes


def existing(path: Path) -> Path:
    """The nearest folder above `path` that is there."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def write_rate(folder: Path) -> float:
    """Bytes a second, written and synced."""
    path, block = folder / f".frs-plan-{os.getpid()}.probe", os.urandom(2**20)
    begun = time.perf_counter()
    try:
        with open(path, "wb") as file:
            for _ in range(PROBE // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return PROBE / (time.perf_counter() - begun)
    finally:
        path.unlink(missing_ok=True)
