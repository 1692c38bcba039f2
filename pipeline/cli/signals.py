"""Handle Ctrl-C and SIGTERM: end the process within seconds and print how to resume."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 4.0  # seconds for the cleanup; then the process is ended, which loses no committed data
INTERRUPTED = "interrupted"
RERUN_TO_RESUME = "interrupted; committed data is kept. Rerun the same command to resume."
RERUN_WITH_RESUME = "interrupted; rerun the same command with --resume to resume from the last checkpoint."


class Interrupted(KeyboardInterrupt):
    """A signal requested the end of the process.

    code: the exit code that shells expect. message: what the process prints.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__()
        self.code, self.message = 128 + number, message


@contextmanager
def interruptible(message: str = INTERRUPTED) -> Iterator[None]:
    """Raise `Interrupted` on SIGINT and SIGTERM inside the block. End the process if it does not end within GRACE.

    Blocks may be nested; the message is that of the inner one. Python runs signal handlers only when C code returns.
    A barrier between ranks or a batch that takes minutes would delay them, so a thread ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        for each in SIGNALS:  # further signals would abort the cleanup, which takes at most GRACE
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number, message)

    before = [signal.signal(number, interrupt) for number in SIGNALS]
    try:
        with _forced_exit(message):
            yield
    finally:
        for number, handler in zip(SIGNALS, before):
            if signal.getsignal(number) is interrupt:  # an interrupted process ignores signals until its end
                signal.signal(number, handler)


@contextmanager
def _forced_exit(message: str) -> Iterator[None]:
    """Start a thread that ends the process if a signal arrives inside the block and Python does not handle it."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    outer = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    # Otherwise a signal to a forked worker would end this process.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_exit_on_signal, args=(read_end, message), daemon=True).start()
    try:
        yield
    finally:
        if signal.set_wakeup_fd(-1) == write_end:  # not in a forked worker
            signal.set_wakeup_fd(outer, warn_on_full_buffer=False)
        os.close(write_end)


def _exit_on_signal(read_end: int, message: str) -> None:
    """Wait for a signal, then end the process after GRACE seconds."""
    while received := os.read(read_end, 1):
        if received[0] in SIGNALS:
            time.sleep(GRACE)
            print(message, file=sys.stderr, flush=True)
            os._exit(128 + received[0])
    os.close(read_end)
