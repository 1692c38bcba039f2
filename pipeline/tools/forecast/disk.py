"""Measure the free space and the write rate of a cache's disk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

PROBE = 64 * 2**20  # bytes written to measure the rate


def nearest_folder(path: Path) -> Path:
    """Return `path`, or its nearest parent folder that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk."""
    return shutil.disk_usage(folder).free


def measure_write_rate(folder: Path) -> float:
    """Measure the bytes per second that the disk writes and syncs."""
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
