"""Command lines: arguments, progress, and every user's error in one line with exit code 2."""

from __future__ import annotations

import argparse
import errno
import sys
import warnings
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from pipeline.errors import PipelineError
from pipeline.stopping import ADVICE, Stopped, stoppable

USER_ERROR = 2
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def one_line(error: BaseException) -> str:
    """The message alone. From a loader's worker torch hands us the whole traceback as text: its last line is ours."""
    text = str(error).strip()
    if text.startswith("Caught "):
        text = text.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    # A name out of a foreign file may hold what a terminal obeys.
    return "".join(c if c.isprintable() else " " for c in text)


def guarded(main: Callable[[], None]) -> None:
    """Run an entry point; PipelineError ends in one line and code 2, Ctrl-C in one and 130, SIGTERM in one and 143."""
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        with stoppable():
            main()
    except PipelineError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except OSError as error:  # a folder that cannot be written, a full disk, a host that does not answer
        kept = "; what was committed is kept, the same command goes on from there" if error.errno in FULL else ""
        print(f"error: {error.filename or type(error).__name__}: {error.strerror or error}{kept}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Stopped as stopped:
        print(ADVICE, file=sys.stderr)
        sys.exit(stopped.code)


def add_config(parser: argparse.ArgumentParser) -> None:
    """--config, and mmdet's --cfg-options, which may be given more than once."""
    parser.add_argument("--config", required=True, help="one config file for both stages")
    text = "override config values"
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text)


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """mmengine's own reading of --cfg-options key=value."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    try:
        return parser.parse_args(["--cfg-options", *pairs]).cfg_options if pairs else {}
    except (argparse.ArgumentError, ValueError, AssertionError, SyntaxError) as error:
        from pipeline.errors import ConfigError

        raise ConfigError(f"--cfg-options: expected key=value pairs, found {pairs} ({error})") from error


class Bar:
    """Progress of a teacher's run: done, images/s, MB, time left. Without a terminal, one line at the end."""

    def __init__(self) -> None:
        self._console = Console()

    def start(self, title: str, total: int | None) -> None:
        columns = [
            TextColumn("{task.description:11}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:6.1f} img/s  {task.fields[mb]:8.1f} MB"), TimeRemainingColumn(),
        ]  # fmt: skip
        self._bar = RichProgress(*columns, console=self._console)
        self._task = self._bar.add_task(title, total=total, rate=0.0, mb=0.0)
        self._mb = 0.0
        self._bar.start()

    def advance(self, samples: int, size: int) -> None:
        self._mb += size / 1e6
        task = self._bar.tasks[self._task]
        done = task.completed + samples
        rate = done / max(1e-9, task.elapsed or 1e-9)
        self._bar.update(self._task, advance=samples, rate=rate, mb=self._mb)

    def stop(self) -> None:
        self._bar.stop()


def log(text: str) -> None:
    print(text, flush=True)
