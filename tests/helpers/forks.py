"""Work in forked processes: a crash or a kill as of a real process, without importing torch and mmdet again."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


def in_child(work: Callable[..., Any], *given: Any) -> int:
    """Start `work(*given)` in a forked process. Returns its id; the caller waits for it."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        work(*given)
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def exit_code(child: int) -> int:
    """Wait for a child. Returns its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def send_result(answer: Any, work: Callable[..., Any], *given: Any) -> None:
    """Send the result of `work(*given)` through a pipe. A spawned process imports only this module for it."""
    answer.send(work(*given))
