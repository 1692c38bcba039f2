"""What the disk under a cache has left, and how fast it takes bytes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

PROBE = 64 * 2**20  # bytes


def nearest_folder(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk."""
    return shutil.disk_usage(folder).free


def measure_write_rate(folder: Path) -> float:
    """Measure how many bytes a second the disk writes and syncs."""
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
