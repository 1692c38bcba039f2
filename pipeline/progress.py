"""What a long run tells of itself; the command line draws it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Log = Callable[[str], None]


class Progress(Protocol):
    """A bar over samples and their bytes."""

    def start(self, title: str, total: int | None) -> None: ...
    def advance(self, samples: int, size: int) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """A Progress for those who do not want to see it: JSON on stdout, benchmarks, tests."""

    def start(self, title: str, total: int | None) -> None: ...
    def advance(self, samples: int, size: int) -> None: ...
    def stop(self) -> None: ...
