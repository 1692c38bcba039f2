"""Replay views of a cache: return their pixels and measure the error of the cached output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.cache.cache import Cache
from pipeline.calibration.gradient import unexplained_variance
from pipeline.config import load_config
from pipeline.data.replay import check_replay
from pipeline.progress import Log
from pipeline.recipe import announce_inputs, read_inputs
from pipeline.records import TeacherOutput, ViewRecord
from pipeline.teacher.model import Teacher, load_teacher


@dataclass
class OutputError:
    """Square root of the unexplained share of the teacher's variance, weighted as the losses are, for each tensor."""

    features: float
    scores: float | None  # None: the cache has no scores


class ViewReplayer:
    """Replays the views of a cache. Raises StaleCache for another cache's config, ReplayMismatch for a changed view."""

    def __init__(self, cache: Cache, config: str, options: dict[str, Any], log: Log) -> None:
        cfg, sections = load_config(config, options)
        announce_inputs(cfg, sections, log)
        inputs = read_inputs(cfg, sections)
        self._images, self._views, self._spec = inputs.images, inputs.views, inputs.teacher
        self._section, self._cache = sections, cache
        self._files = cache.stored_images() if sections.cache.images else None
        self._teacher: Teacher | None = None
        cache.require({**inputs.recipe, "codec": cache.recipe["codec"]})

    def pixels(self, record: ViewRecord) -> Tensor:
        """Return the view's pixels (3, H, W) uint8, and check that the teacher saw the same."""
        content = None if self._files is None else self._files.read(record.image_id)
        pixels, _, found = self._views.replay(self._images.info(record.image_id), record.view, content=content)
        check_replay(record, found, self._section.views.check, self._section.views.tolerance, {})
        return pixels

    def measure_error(self, record: ViewRecord, coded: TeacherOutput) -> OutputError:
        """Run the teacher on one view and compare its output with the cached one."""
        if self._teacher is None:
            self._cache.require(self._cache.recipe, self._spec.weights_sha256())
            self._teacher = load_teacher(self._section, self._spec, self._images.classes)
        exact = self._teacher([self.pixels(record)])
        coded = coded.to(self._teacher.device)
        features = unexplained_variance("feature", [(exact, coded.values("feature"))]) ** 0.5
        if not coded.scores:
            return OutputError(features, None)
        return OutputError(features, unexplained_variance("score", [(exact, coded.values("score"))]) ** 0.5)
