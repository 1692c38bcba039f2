"""Ctrl-C and SIGTERM: stop within seconds, whatever the process is doing, and say how to go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE = 4.0  # seconds to clean up in; behind them nothing is lost either, as after kill -9
STOPPED = "stopped"
GOES_ON = "stopped; what was committed is kept, the same command goes on from there"
RESUMES = "stopped; the same command with --resume goes on from the last checkpoint"
_advice = STOPPED  # what to say when it happens


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; `code` is what shells expect then."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def advise(text: str) -> None:
    """From now on say this."""
    global _advice  # noqa: PLW0603
    _advice = text


def advice() -> str:
    """Return what `advise` set."""
    return _advice


def _raise(number: int, frame: Any) -> None:
    """Once: another signal would break off what cleans up behind the first, and the end is GRACE away at most."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise `Stopped`; and where that does not end the process in time, its end is forced.

    Python's handlers wait for C code to return: a rank that waits for others, or a batch that takes minutes, would
    not hear them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, _raise) for number in STOPS]
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # else a worker's signal would end us
    threading.Thread(target=_force, args=(hears,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(tells)
        for number, handler in zip(STOPS, before):
            if signal.getsignal(number) is _raise:  # stopped, the process goes on to ignore them to its end
                signal.signal(number, handler)


def _force(hears: int) -> None:
    while heard := os.read(hears, 1):
        if heard[0] in STOPS:
            time.sleep(GRACE)
            print(_advice, file=sys.stderr, flush=True)
            os._exit(128 + heard[0])
    os.close(hears)
