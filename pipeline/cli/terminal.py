"""Show the progress of a run: a bar or plain lines on the terminal, and the path of the log file."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

from pipeline.cli.output import LOGGER, log, show


class Bar:
    """Show the progress of a run over views: views done, views/s, MB, remaining time.

    Without a terminal, print one plain line at the end. If the number of views is unknown (`total` is None), print the
    title at the start instead.
    """

    def __init__(self, stderr: bool = False) -> None:
        from rich.console import Console

        self._console = Console(stderr=stderr)
        self._bar: Any = None
        self._total: int | None = None

    def start(self, title: str, total: int | None) -> None:
        """Start a bar, and stop the one before it."""
        if self._bar:
            self._bar.stop()
        self._title, self._total, self._done, self._mb, self._begun = title, total, 0, 0.0, time.perf_counter()
        self._bar = None
        if self._console.is_terminal:
            self._draw()
        elif total is None:
            self._print(title)

    def _draw(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [
            TextColumn("{task.description:11}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:6.1f} views/s  {task.fields[mb]:8.1f} MB"),
            TimeRemainingColumn(),
        ]
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task(self._title, total=self._total, rate=0.0, mb=0.0)
        self._bar.start()

    @property
    def _rate(self) -> float:
        return self._done / max(1e-9, time.perf_counter() - self._begun)

    def advance(self, samples: int, size: int) -> None:
        """Add samples and bytes that are done."""
        self._done, self._mb = self._done + samples, self._mb + size / 1e6
        if self._bar:
            self._bar.update(self._task, advance=samples, rate=self._rate, mb=self._mb)

    def stop(self) -> None:
        """Stop the bar, or print the plain line."""
        if self._bar:
            self._bar.stop()
        elif self._total is not None:
            size = f", {self._mb:.1f} MB" if self._mb else ""
            seconds = time.perf_counter() - self._begun
            of = f"{self._done} of {self._total} views"
            self._print(f"{self._title:8} {of}, {self._rate:.1f} views/s{size}, {seconds:.0f} s")

    def _print(self, text: str) -> None:
        show(text, error=True) if self._console.stderr else log(text)


def keep_log(path: Path) -> None:
    """Also write to a file what `log` prints and what modules send to the logger `pipeline`, with the time."""
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
    """Return the path of stage 1's log, beside the cache: the bytes of a cache must not depend on its date."""
    parent, _, name = cache_dir.rstrip("/").rpartition("/")
    return Path("work_dirs" if "://" in cache_dir else parent, f"{name}.log")


def keep_log_beside(cache_dir: str) -> None:
    """Write the log beside the cache, or in work_dirs/ if that folder is read-only, as above the root of a mount."""
    path = log_file(cache_dir)
    try:
        keep_log(path)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        keep_log(Path("work_dirs", path.name))
        if os.environ.get("RANK", "0") == "0":
            log(f"log      work_dirs/{path.name}, because {path} cannot be written; set --log-file to change it")
