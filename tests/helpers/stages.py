"""Both stages in this process, and the digests of what they write."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.progress import Silent

if TYPE_CHECKING:
    from pipeline.data.stream import Stream


def begin_cache(config: Path, version: int, **options: Any) -> None:
    """Write the plan.json of an older format version, which the stages then keep to."""
    from pipeline.cache.canonical import write_json
    from pipeline.config import load_config
    from pipeline.recipe import make_recipe, read_inputs
    from pipeline.stage1.job import make_plan

    cfg, sections = load_config(str(config), options)
    inputs = read_inputs(cfg, sections)
    recipe = make_recipe(sections, inputs.images, inputs.views, inputs.teacher, version)
    write_json(sections.cache.place() / "plan.json", make_plan(sections, recipe, inputs.teacher.weights_sha256()))


def stage1(config: Path, **options: Any) -> dict[str, Any]:
    """Run stage 1 without output. Returns its summary; `options` are dotted keys of the config."""
    from pipeline.config import load_config
    from pipeline.stage1.run import cache_teacher

    cfg, sections = load_config(str(config), options)
    return cache_teacher(cfg, sections, lambda text: None, Silent())


def stage2(config: Path, resume: str | None = None, **options: object) -> dict:
    """Run stage 2 without output. Returns its summary."""
    from pipeline.config import load_config
    from pipeline.stage2.settings import apply_flags
    from pipeline.stage2.train import train_student

    cfg, sections = load_config(str(config), options)
    apply_flags(cfg, str(config), None, resume, False, False, "none")
    return train_student(cfg, sections)


def prepared_stream(config: Path, **options: object) -> Stream:
    """Prepare the stream of stage 2, four samples a batch."""
    from pipeline.config import load_config
    from pipeline.data.stream import Stream
    from pipeline.stage2.teacher_data import prepare_teacher_data

    return Stream(prepare_teacher_data(*load_config(str(config), options)).stream, 4, seed=1)


def tree(root: Path) -> dict[str, str]:
    """sha256 of every file of a cache that has to be reproducible."""
    files = (p for p in root.rglob("*") if p.is_file() and p.name not in (".lock", "summary.json"))
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
