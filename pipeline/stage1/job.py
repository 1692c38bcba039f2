"""Check and build the inputs of stage 1 before anything is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.cache.cache import FORMAT, differences
from pipeline.cache.canonical import digest, read_json
from pipeline.data.images import Images
from pipeline.data.shard_planning import expected_passes, layout_of
from pipeline.data.views import Views
from pipeline.errors import StaleCache
from pipeline.mmdet_compat.registry import Config, plain
from pipeline.progress import Log, Progress
from pipeline.recipe import announce_inputs, read_inputs
from pipeline.sections import Sections
from pipeline.stage1.loader import Batch, Shard, ViewLoader
from pipeline.stage1.ranks import Ranks
from pipeline.storage.place import Place
from pipeline.teacher.model import Teacher, load_teacher
from pipeline.text import one_line


@dataclass(frozen=True)
class Job:
    """The inputs of stage 1. `plan`: content of the cache's plan.json, which identifies every shard."""

    root: Place
    sections: Sections
    images: Images
    views: Views
    teacher: Teacher
    plan: dict[str, Any]
    log: Log
    progress: Progress
    ranks: Ranks

    def loader(self, batches: Iterable[tuple[Shard, Batch]]) -> ViewLoader[Shard]:
        """Return a loader of the planned batches, given as (shard, batch) pairs."""
        return ViewLoader(self.images, self.views, batches, self.sections.cache.workers)


def open_job(cfg: Config, sections: Sections, log: Log, progress: Progress, keep: bool = True) -> Job:
    """Check and build the inputs of stage 1. The cache is not written. Raise PipelineError for an invalid input.

    `keep`: the parsed annotation file, for other processes and later starts.
    """
    root, ranks = sections.cache.place(), Ranks()
    log, progress = ranks.shared_log(log), ranks.shared_progress(progress)
    announce_inputs(cfg, sections, log)
    inputs = read_inputs(cfg, sections, keep)
    images, views, spec = inputs.images, inputs.views, inputs.teacher
    lines = [
        f"images   {len(file)} of {file.total} in {file.ann_file} (filter_cfg {plain(file.filter_cfg)})"
        for file in images.files
    ]
    lines += [*(f"boxes    {note}" for note in images.notes), f"views    {views.recognised}"]
    for line in lines:  # each has names of the annotation file or the config
        log(one_line(line))
    teacher = load_teacher(sections, spec, images.classes)
    weights = spec.weights_sha256()
    hardware = f"{teacher.device}" if ranks.world == 1 else f"{ranks.world} ranks"
    unscored = "" if teacher.scored else "; it has no class scores, so the richness map is 1 everywhere"
    log(one_line(f"teacher  {spec.label}, weights {weights[:12]}, on {hardware}{unscored}"))
    plan = make_plan(sections, inputs.recipe, weights)
    expected_passes(sections, views)
    check_existing(root, plan)
    return Job(root, sections, images, views, teacher, plan, log, progress, ranks)


def make_plan(sections: Sections, recipe: dict[str, Any], weights: str) -> dict[str, Any]:
    """Return plan.json, which identifies every shard. It has no view count and no image list, so a cache can grow."""
    return {
        "format": FORMAT,
        "version": recipe["format"][1],
        "recipe": recipe,
        "recipe_digest": digest(recipe),
        "teacher_sha256": weights,
        "layout": layout_of(sections),
    }


def check_existing(root: Place, plan: dict[str, Any], hint: str = "use another cache.dir") -> None:
    """Raise StaleCache where the folder has a cache of another teacher, data set or codec. `hint`: what to do then."""
    if not (root / "plan.json").exists():
        return
    lines = differences(read_json(root / "plan.json"), plan)
    lines = [line for line in lines if not line.startswith("recipe_digest")]
    if lines:
        raise StaleCache(f"{root}: contains another cache: {lines[0]}; {hint}")
