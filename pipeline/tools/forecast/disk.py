"""Measure the free space and the write rate of a cache's disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

PROBE, PARTS = 64 * 2**20, 16  # bytes written to measure the rate, and MiB between two looks at the clock


def nearest_folder(path: Path) -> Path:
    """Return `path`, or its nearest parent folder that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk."""
    return shutil.disk_usage(folder).free


def measure_write_rate(folder: Path, seconds: float, now: Callable[[], float] = time.perf_counter) -> float:
    """Measure the bytes per second that the disk writes and syncs, in parts of PROBE bytes, for up to `seconds`."""
    path, block = folder / f".frs-plan-{os.getpid()}.probe", os.urandom(2**20)
    begun, written = now(), 0
    try:
        with open(path, "wb") as file:
            while written < PROBE and (not written or now() - begun < seconds):
                for _ in range(PARTS):
                    file.write(block)
                    written += len(block)
                file.flush()
                os.fsync(file.fileno())
        return written / max(now() - begun, 1e-9)
    finally:
        path.unlink(missing_ok=True)
