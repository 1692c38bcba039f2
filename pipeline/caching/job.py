"""What stage 1 works with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.cache.place import Place
from pipeline.caching.loader import ViewLoader
from pipeline.caching.ranks import Ranks
from pipeline.config import Sections
from pipeline.data import Images
from pipeline.progress import Log, Progress
from pipeline.teacher import Teacher
from pipeline.views import Views


@dataclass
class Job:
    """All that stage 1 works with, checked and built."""

    root: Place
    sections: Sections
    images: Images
    views: Views
    teacher: Teacher
    plan: dict[str, Any]
    log: Log
    progress: Progress
    ranks: Ranks

    def loader(self, batches: Iterable[Any]) -> ViewLoader:
        return ViewLoader(self.images, self.views, batches, self.sections.cache.workers)
