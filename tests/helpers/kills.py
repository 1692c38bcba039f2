"""SIGKILL of a command at a random moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path


def ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == child


def kill(child: int, root: Path, delay: float, at_a_write: bool) -> bool:
    """SIGKILL behind `delay` seconds, or at the next temporary file behind them. False: it had ended by itself."""
    if not wait_for_moment(partial(ended, child), root, delay, at_a_write):
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def wait_for_moment(ended: Callable[[], bool], root: Path, delay: float, at_a_write: bool) -> bool:
    """Wait `delay` seconds, then for a temporary file if `at_a_write`. False: what was to be killed has ended."""
    until = time.perf_counter() + delay
    while time.perf_counter() < until or (at_a_write and not list(root.glob("**/*.tmp"))):
        if ended():
            return False
        time.sleep(0.0005)
    return True
