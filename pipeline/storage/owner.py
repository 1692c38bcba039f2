"""Who holds a lock in an object store, and whether that process still runs on this machine."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any


def about_this_process() -> dict[str, Any]:
    """What a lock object says about its owner."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "kernel": kernel(),
        "started": start_time(os.getpid()),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def kernel() -> str:
    """Identify the running kernel and the namespace of its process numbers; empty where they are not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_time(process: int) -> str | None:
    """When a process of this kernel started, in the kernel's ticks; None where it does not run."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def is_running(owner: dict[str, Any]) -> bool | None:
    """Whether the owner still runs; None where it cannot be known, because it ran elsewhere."""
    process, here = owner.get("process"), kernel()
    if not here or owner.get("kernel") != here or not isinstance(process, int):
        return None
    return start_time(process) == owner.get("started")
