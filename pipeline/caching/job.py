"""What stage 1 works with, and how it tells of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.caching.loader import ViewLoader
from pipeline.config import Sections
from pipeline.data import Images
from pipeline.teacher import Teacher
from pipeline.views import Views

Log = Callable[[str], None]


class Progress(Protocol):
    """What the loop tells of itself; the command line draws it."""

    def start(self, title: str, total: int | None) -> None: ...
    def advance(self, samples: int, size: int) -> None: ...
    def stop(self) -> None: ...


@dataclass
class Job:
    """All that stage 1 works with, checked and built."""

    root: Path
    sections: Sections
    images: Images
    views: Views
    teacher: Teacher
    plan: dict[str, Any]
    log: Log
    progress: Progress

    def loader(self, batches: Iterable[Any]) -> ViewLoader:
        return ViewLoader(self.images, self.views, list(batches), self.sections.cache.workers)
