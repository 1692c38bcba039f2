"""Identify the owner of a lock in an object store, and detect whether it is still running on this machine."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any


def about_this_process() -> dict[str, Any]:
    """Return the content of a lock object that this process owns."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "kernel": kernel(),
        "started": start_time(os.getpid()),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def kernel() -> str:
    """Identify the running kernel and the namespace of its process numbers; empty if they are not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_time(process: int) -> str | None:
    """Return when a process of this kernel started, in the kernel's ticks; None if it is not running."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def is_running(owner: dict[str, Any]) -> bool | None:
    """Return whether the owner is still running; None if it ran on another machine."""
    process, here = owner.get("process"), kernel()
    if not here or owner.get("kernel") != here or not isinstance(process, int):
        return None
    return start_time(process) == owner.get("started")
