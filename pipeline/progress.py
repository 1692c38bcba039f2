"""Progress events of a long run. The command line draws them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Log = Callable[[str], None]


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
