"""Command lines: arguments, progress, log file, and every user's error in one line with exit code 2."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.stopping import ADVICE, Stopped, stoppable

USER_ERROR = 2
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
LOGGER = logging.getLogger("pipeline")


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
        LOGGER.info(f"error: {one_line(error)}")
        sys.exit(USER_ERROR)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a folder that cannot be written, a full disk, a host that does not answer
        kept = "; what was committed is kept, the same command goes on from there" if error.errno in FULL else ""
        print(f"error: {error.filename or type(error).__name__}: {error.strerror or error}{kept}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Stopped as stopped:
        print(ADVICE, file=sys.stderr)
        sys.exit(stopped.code)


@dataclass(frozen=True)
class Command:
    """A verb: what it does in one line, an example ({prog} stands for its name), its arguments, and what runs it."""

    text: str
    example: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Give a parser all of this."""
        parser.description, parser.formatter_class = self.text, argparse.RawDescriptionHelpFormatter
        parser.epilog = "example:\n  " + self.example.format(prog=parser.prog).replace("\n", "\n  ")
        self.add(parser)
        parser.set_defaults(run=self.run)


def script(command: Command, name: str) -> None:
    """A command that stands alone in a file of this name."""
    parser = argparse.ArgumentParser(prog=f"python {name}")
    command.fill(parser)
    guarded(lambda: command.run(parser.parse_args()))


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="C", help="one config file for both stages")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """mmdet's --cfg-options; may be given more than once."""
    text = "override config values"
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text)


def positive(text: str) -> int:
    """Type of an argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """mmengine's own reading of --cfg-options key=value."""
    if not pairs:
        return {}
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    try:
        return parser.parse_args(["--cfg-options", *pairs]).cfg_options
    except (argparse.ArgumentError, ValueError, AssertionError, SyntaxError) as error:
        from pipeline.errors import ConfigError

        raise ConfigError(f"--cfg-options: expected key=value pairs, found {pairs} ({error})") from error


class Bar:
    """Progress of a run over views: done, views/s, MB, time left. Without a terminal, one plain line at the end."""

    def __init__(self, stderr: bool = False) -> None:
        from rich.console import Console

        self._console = Console(stderr=stderr)

    def start(self, title: str, total: int | None) -> None:
        self._title, self._total, self._done, self._mb, self._begun = title, total, 0, 0.0, time.perf_counter()
        self._bar: Any = None
        if self._console.is_terminal:
            self._draw()

    def _draw(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [
            TextColumn("{task.description:11}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:6.1f} views/s  {task.fields[mb]:8.1f} MB"), TimeRemainingColumn(),
        ]  # fmt: skip
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task(self._title, total=self._total, rate=0.0, mb=0.0)
        self._bar.start()

    @property
    def _rate(self) -> float:
        return self._done / max(1e-9, time.perf_counter() - self._begun)

    def advance(self, samples: int, size: int) -> None:
        self._done, self._mb = self._done + samples, self._mb + size / 1e6
        if self._bar:
            self._bar.update(self._task, advance=samples, rate=self._rate, mb=self._mb)

    def stop(self) -> None:
        if self._bar:
            self._bar.stop()
            return
        of = f" of {self._total}" if self._total is not None else ""
        size = f", {self._mb:.1f} MB" if self._mb else ""
        seconds = time.perf_counter() - self._begun
        text = f"{self._title:8} {self._done}{of} views, {self._rate:.1f} views/s{size}, {seconds:.0f} s"
        print(text, file=sys.stderr) if self._console.stderr else log(text)


def log(text: str) -> None:
    """To the terminal, and into the log file where one is kept."""
    print(text, flush=True)
    for line in text.splitlines():
        LOGGER.info(line)


def keep_log(path: Path) -> None:
    """From now on `log` and what modules tell the logger `pipeline` also go to a file, each line with its time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in list(LOGGER.handlers):
        LOGGER.removeHandler(old)
        old.close()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def log_file(cache_dir: str) -> Path:
    """Where stage 1 keeps its log: beside the cache, as a cache's bytes do not depend on the day they were made."""
    place, _, name = cache_dir.rstrip("/").rpartition("/")
    return Path("work_dirs" if "://" in cache_dir else place, f"{name}.log")


def keep_log_beside(cache_dir: str) -> None:
    """`keep_log`; in work_dirs/ where nothing can be written beside the cache, which may fill a mount to its root."""
    path = log_file(cache_dir)
    try:
        keep_log(path)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        keep_log(Path("work_dirs", path.name))
        if os.environ.get("RANK", "0") == "0":
            log(f"log      work_dirs/{path.name}, as {path} cannot be written; --log-file takes another place")
