"""Calibrate the new codec with the teacher on a few views, or copy the codec of another cache.

A codec's step depends on the error that it causes in a student's gradient. That error is measured on a probe made of
the teacher's weights, which no cache has. The teacher is therefore needed for the calibration views, as many as in
stage 1. It is not needed where a cache of the same recipe is calibrated already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import write_json
from pipeline.cache.layout import CODEC_COPY
from pipeline.calibration.calibrate import load_or_calibrate_codec
from pipeline.calibration.sample import ViewSample
from pipeline.codecs.base import Measure
from pipeline.codecs.group import open_codec
from pipeline.codecs.registry import CODECS, read_options
from pipeline.config import load_config
from pipeline.data.shard_planning import plan_views
from pipeline.progress import Log, Progress
from pipeline.records import SampleRef, TeacherOutput
from pipeline.sections import Sections
from pipeline.stage1.job import Job, open_job
from pipeline.storage.files import atomic_folder, read_small
from pipeline.storage.place import Place
from pipeline.tools.reencode.stored import decode_views, read_view


class CodedSample(ViewSample):
    """Calibration views of a lossy source. The codec is fitted to decoded views and measured against the teacher."""

    def __init__(self, job: Job, source: Cache) -> None:
        super().__init__(job)
        self._source, self._codec = source, open_codec(source)
        refs = (ref for shard in source.references(0) for ref in shard)
        self._refs: dict[int, SampleRef] = {ref.image_id: ref for ref in refs}

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        layout = self._job.plan["layout"]
        for shard in plan_views(self._job.images, self._job.views, 0, layout, self.parts[part]):
            for image, _, _ in shard.samples:
                if image in self._refs:  # not in quarantine
                    ref = self._refs[image]
                    self.read.setdefault(part, set()).add((ref.image_id, ref.view))
                    view = read_view(self._source.shard(0, ref.shard), ref.index, self._codec)
                    yield decode_views(self._codec, [view], self._job.teacher.device)

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        for coded, (_, measure) in zip(self.outputs(part), super().probes(part, losses, near)):
            yield coded, measure


def calibrate_with(
    config: str, options: dict[str, Any], source: Cache, plan: dict[str, Any], root: Place, log: Log, progress: Progress
) -> None:
    """Calibrate as stage 1 of this config does; a lossless source gives the same bytes. Raise StaleCache."""
    cfg, sections = load_config(config, options)
    old = point_cache_at(sections, source.recipe["codec"], source.root)
    job = open_job(cfg, old, log, progress)  # raises StaleCache unless this is the source's config
    new = point_cache_at(sections, plan["recipe"]["codec"], root)
    job = replace(job, root=root, plan=plan, sections=new)
    load_or_calibrate_codec(job, None if source.recipe["codec"]["type"] == "lossless" else CodedSample(job, source))


def point_cache_at(sections: Sections, codec: dict[str, Any], root: Place) -> Sections:
    """Return the sections with another codec and cache.dir; without the `store` and `local` of the old one."""
    return replace(
        sections, cache=replace(sections.cache, codec=read_options(codec), dir=str(root), store={}, local=None)
    )


def require_same_recipe(other: Cache, plan: dict[str, Any]) -> None:
    """Raise StaleCache where the recipe of another cache differs. Both may have different format versions."""
    recipe = {**plan["recipe"], "format": other.recipe.get("format")}
    other.require(recipe, plan["teacher_sha256"], "use a cache of the same teacher and data")


def copy_codec(other: Cache, plan: dict[str, Any], root: Place) -> None:
    """Copy the codec of another cache. Raise StaleCache where its recipe differs."""
    require_same_recipe(other, plan)
    manifest = other.codec_manifest()
    with atomic_folder(root / "codec") as folder:  # a folder without codec.json is incomplete and is replaced
        _copy_tables(other, manifest, folder)
    if CODECS[manifest["settings"]["type"]].trained:
        with atomic_folder(root / CODEC_COPY) as folder:
            _copy_tables(other, manifest, folder / "codec")
            write_json(folder / "codec.json", manifest)
    write_json(root / "codec.json", manifest)


def _copy_tables(other: Cache, manifest: dict[str, Any], folder: Path) -> None:
    """Copy the files of another cache's codec/ into a folder."""
    for name, sha256 in manifest["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(read_small(other.root / "codec" / name, sha256))
