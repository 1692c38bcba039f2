"""What a calibration needs to know and to run. Stage 1's Job has it; the package does not depend on stage 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from pipeline.data.images import Images
from pipeline.data.views import Views
from pipeline.progress import Log, Progress
from pipeline.sections import Sections
from pipeline.storage.place import Place
from pipeline.teacher.model import Teacher


class CalibrationJob(Protocol):
    """The cache to calibrate for, and what produces the teacher's outputs for it.

    `plan`: content of the cache's plan.json. `loader`: (shard, batch) pairs of planned views -> an object whose
    `batches(skip_broken)` yields them with `views` and `records`.
    """

    @property
    def root(self) -> Place: ...
    @property
    def sections(self) -> Sections: ...
    @property
    def images(self) -> Images: ...
    @property
    def views(self) -> Views: ...
    @property
    def teacher(self) -> Teacher: ...
    @property
    def plan(self) -> dict[str, Any]: ...
    @property
    def log(self) -> Log: ...
    @property
    def progress(self) -> Progress: ...

    def loader(self, batches: Iterable[tuple[Any, Any]]) -> Any: ...
