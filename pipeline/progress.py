"""Progress events of a long run. The command line draws them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

Log = Callable[[str], None]

# Work above these limits can take longer than a few seconds. One line is logged before it starts.
LARGE_JSON = 30e6  # bytes of an annotation file
LARGE_FILE = 500e6  # bytes to read or hash
MANY_IMAGES = 2000  # images whose views' sizes are planned


def ignore(text: str) -> None:
    """A Log that drops the line."""


def announce_file(log: Log, what: str, path: Path, limit: float) -> None:
    """Log one line before a large file is read. `what`: the line up to the path."""
    size = path.stat().st_size if path.is_file() else 0
    if size > limit:
        log(f"{what} {path}, {size / 1e6:.0f} MB")


class Progress(Protocol):
    """Receives progress in samples and bytes."""

    def start(self, title: str, total: int | None) -> None: ...
    def advance(self, samples: int, size: int) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """A Progress that shows nothing, for JSON output, benchmarks and tests."""

    def start(self, title: str, total: int | None) -> None: ...
    def advance(self, samples: int, size: int) -> None: ...
    def stop(self) -> None: ...
