"""Views as the teacher saw them, with the teacher at hand: their pixels, and how far a cache is from what it said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.cache.cache import Cache
from pipeline.calibration.gradient import unexplained
from pipeline.config import load_config
from pipeline.data.replay import check_replay
from pipeline.recipe import read_inputs
from pipeline.records import TeacherOutput, ViewRecord
from pipeline.teacher.model import Teacher, own_device


@dataclass
class Wrong:
    """Share of what varies in the teacher's output that is lost, weighted as the losses are: root of it, per tensor."""

    features: float
    scores: float | None  # None: the cache has none


class Seen:
    """Replays views of a cache's config. Raises StaleCache where it is not this cache's, ReplayMismatch."""

    def __init__(self, cache: Cache, config: str, options: dict[str, Any]) -> None:
        cfg, sections = load_config(config, options)
        inputs = read_inputs(cfg, sections)
        self._images, self._views, self._spec = inputs.images, inputs.views, inputs.teacher
        self._section, self._cache = sections, cache
        self._teacher: Teacher | None = None
        cache.require({**inputs.recipe, "codec": cache.recipe["codec"]})

    def pixels(self, record: ViewRecord) -> Tensor:
        """(3, H, W) uint8, the very ones that the teacher saw."""
        pixels, _, found = self._views.replay(self._images.info(record.image_id), record.view)
        check_replay(record, found, self._section.views.check, self._section.views.tolerance, {})
        return pixels

    def wrong(self, record: ViewRecord, coded: TeacherOutput) -> Wrong:
        """Runs the teacher on one view and compares."""
        if self._teacher is None:
            self._cache.require(self._cache.recipe, self._spec.weights_sha256())
            self._teacher = Teacher(self._spec, self._images.classes, own_device(), self._section.teacher.tf32)
        exact = self._teacher([self.pixels(record)])
        coded = coded.to(self._teacher.device)
        lost = lambda what: unexplained(what, [(exact, coded.values(what))]) ** 0.5  # noqa: E731
        return Wrong(lost("feature"), lost("score") if coded.scores else None)
