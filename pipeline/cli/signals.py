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
_exit_message = INTERRUPTED  # printed when a signal ends the process


class Interrupted(KeyboardInterrupt):
    """A signal requested the end of the process. `code`: the exit code that shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def set_exit_message(text: str) -> None:
    """Set the line that is printed when a signal ends the process."""
    global _exit_message  # noqa: PLW0603
    _exit_message = text


def exit_message() -> str:
    """Return the line that `set_exit_message` set."""
    return _exit_message


def _raise_interrupted(number: int, frame: Any) -> None:
    """Raise `Interrupted`, and ignore further signals: they would abort the cleanup, which takes at most GRACE."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` on SIGINT and SIGTERM inside the block. End the process if it does not end within GRACE.

    Python runs signal handlers only when C code returns. A barrier between ranks or a batch that takes minutes would
    delay them, so a thread ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, _raise_interrupted) for number in SIGNALS]
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    # Otherwise a signal to a forked worker would end this process.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_force_exit, args=(read_end,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(write_end)
        for number, handler in zip(SIGNALS, before):
            if signal.getsignal(number) is _raise_interrupted:  # an interrupted process ignores signals until its end
                signal.signal(number, handler)


def _force_exit(read_end: int) -> None:
    """Wait for a signal, then end the process after GRACE seconds."""
    while received := os.read(read_end, 1):
        if received[0] in SIGNALS:
            time.sleep(GRACE)
            print(_exit_message, file=sys.stderr, flush=True)
            os._exit(128 + received[0])
    os.close(read_end)
