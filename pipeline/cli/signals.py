"""Handle Ctrl-C and SIGTERM: end the process within seconds and print how to resume."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 4.0  # seconds for the cleanup; then the process is ended, which loses no committed data
LATER = 0.05  # seconds until a signal that arrived where its exception would be dropped is sent again
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

    interrupt = _Handler(message)
    os.register_at_fork(after_in_child=interrupt.leave_to_parent)
    before = [signal.signal(number, interrupt) for number in SIGNALS]
    try:
        with _forced_exit(message):
            yield
    except Exception as error:
        if interrupt.waiting:
            interrupt.ignore_more()  # the waiting signal is sent again, maybe after this block
            raise Interrupted(interrupt.waiting[0], message) from error
        raise
    finally:
        for number, handler in zip(SIGNALS, before):
            if signal.getsignal(number) is interrupt:  # an interrupted process ignores signals until its end
                signal.signal(number, handler)


class _Handler:
    """Handles a signal. `waiting`: signals that arrived where their exception would be dropped."""

    def __init__(self, message: str) -> None:
        self._message, self.waiting = message, list[int]()

    def __call__(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGCHLD, _ignore)  # torch reports each worker that ends by an error of its own
        if _would_be_dropped(frame):
            self.waiting.append(number)
            again = threading.Timer(LATER, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        self.ignore_more()
        sys.unraisablehook = _ignore_unraisable  # objects that are half made or half cleaned up
        raise Interrupted(number, self._message)

    def ignore_more(self) -> None:
        """Ignore further signals: they would abort the cleanup, which takes at most GRACE."""
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)

    def leave_to_parent(self) -> None:
        """In a forked child: end on SIGTERM. Ctrl-C also reaches workers, but their parent ends them."""
        sys.excepthook = _report_unless_parent_left
        if signal.getsignal(signal.SIGTERM) is self:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _ignore(number: int, frame: Any) -> None:
    """Do nothing. SIG_DFL would make Python report a signal that has just arrived."""


def _ignore_unraisable(args: Any) -> None:
    """Print nothing about an exception of a destructor."""


def _report_unless_parent_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print nothing where a worker's parent ended while it received a tensor."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _would_be_dropped(frame: Any) -> bool:
    """Return whether Python would print an exception raised in a frame, and drop it.

    So it is in destructors, such as that of torch's DataLoader, which joins its workers, and in what runs at a fork.
    """
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "_launch"):
            return True
        frame = frame.f_back
    return False


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
            if _is_open(read_end):
                print(message, file=sys.stderr, flush=True)
            else:  # the main thread has left the block, and prints the message itself; its exit may wait for a process
                time.sleep(GRACE)
            for child in multiprocessing.active_children():  # one that has just started would wait forever
                child.kill()
            os._exit(128 + received[0])
    os.close(read_end)


def _is_open(read_end: int) -> bool:
    """Return whether the other end of a pipe is open. Drop what it sent."""
    os.set_blocking(read_end, False)
    try:
        while os.read(read_end, 64):
            pass
    except BlockingIOError:
        return True
    return False
