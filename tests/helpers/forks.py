"""Work in forked processes: a crash or a kill as of a real process, without importing torch and mmdet again."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO


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


def run_python(words: list[str], log: TextIO, folder: Path, environment: dict[str, str]) -> int:
    """Run `python WORDS` in a forked process, its output in `log`. Returns the exit code.

    Processes that the script itself would spawn are forked too.
    """

    def work() -> None:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        forking = multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda method=None: forking  # type: ignore[assignment]
        is_module = words[0] == "-m"
        sys.argv = words[is_module:]
        with redirect_stdout(log), redirect_stderr(log):
            (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")
            log.flush()

    return exit_code(in_child(work))
