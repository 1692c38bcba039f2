"""Stage 1: run the teacher once over every view and leave a verified cache. Safe to stop and to start again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.cache.cache import FORMAT, VERSION, Cache, differences, load_pass_plan, pass_folder, shard_name
from pipeline.cache.files import digest, locked, read_json, sha256_file, write_json
from pipeline.cache.manifest import shard_done, write_manifest
from pipeline.cache.plan import ShardPlan, mix
from pipeline.codec import codec_settings, load_codec, new_codec, save_codec
from pipeline.codec.base import Codec, positions
from pipeline.config import Sections
from pipeline.data import Images
from pipeline.errors import CacheError, StaleCache
from pipeline.mm import Config, plain
from pipeline.planning import layout_of, plan_views
from pipeline.recipe import make_recipe
from pipeline.records import TeacherOutput
from pipeline.replay import environment
from pipeline.shards import ViewLoader, write_shard
from pipeline.teacher import Teacher, find_teacher, gate
from pipeline.views import Views

Log = Callable[[str], None]


class Progress(Protocol):
    """What the loop tells of itself; the command line draws it."""

    def start(self, title: str, total: int) -> None: ...
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


def cache_teacher(cfg: Config, sections: Sections, log: Log, progress: Progress) -> dict[str, Any]:
    """Make, complete or grow the cache of a config. Returns its summary. Raises PipelineError."""
    begun = time.perf_counter()
    images = Images(cfg.train_dataloader.dataset)
    views = Views(images.pipeline, sections.views.seed, sections.views.count)
    spec = find_teacher(sections.teacher)
    recipe = make_recipe(sections, images, views, spec)
    log(f"images   {len(images)} of {images.total} in {images.ann_file} (filter_cfg {plain(images.filter_cfg)})")
    log(f"views    {views.count} an image, {'all there are' if views.finite else 'seeded draws'}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = Teacher(spec, images.classes, device, sections.teacher.tf32)
    weights = sha256_file(spec.weights())
    log(f"teacher  {spec.label}, weights {weights[:12]}, on {device}")
    root = Path(sections.cache.dir)
    plan = make_plan(sections, recipe, weights)
    check_existing(root, plan)
    with locked(root):
        if not (root / "codec.json").exists():
            measured = gate.measure(teacher.detector, cfg, sections.teacher.gate_images)
            log(f"gate     mAP {measured['mAP']:.3f} on {measured['images']} val images")
            gate.require(measured, sections.teacher.min_map)
            write_json(root / "gate.json", measured)
            write_json(root / "plan.json", plan)
        job = Job(root, sections, images, views, teacher, plan, log, progress)
        codec = calibrated(job)
        passes = sections.cache.passes or views.count
        computed = sum(cache_pass(job, codec, number) for number in range(passes))
        summary = summarise(root, len(images), computed, time.perf_counter() - begun)
        write_json(root / "summary.json", summary)
    return summary


def make_plan(sections: Sections, recipe: dict[str, Any], weights: str) -> dict[str, Any]:
    """plan.json: the identity of every shard. View count and image list are no part of it, so that a cache can grow."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "recipe": recipe,
        "recipe_digest": digest(recipe),
        "teacher_sha256": weights,
        "layout": layout_of(sections),
    }


def check_existing(root: Path, plan: dict[str, Any]) -> None:
    """Never mix two teachers, data sets or codecs in one folder."""
    if not (root / "plan.json").exists():
        return
    lines = differences(read_json(root / "plan.json"), plan)
    lines = [line for line in lines if not line.startswith("recipe_digest")]
    if lines:
        raise StaleCache(f"{root}: holds another cache: {lines[0]}; choose another cache.dir or remove that folder")


def calibrated(job: Job) -> Codec:
    """The codec of this cache: read back, or calibrated on a seeded sample of views and saved."""
    root = job.root
    if (root / "codec.json").exists():
        return load_codec(root, Cache(root).codec_manifest())
    codec = new_codec(codec_settings(plain(dict(job.sections.cache.codec))))
    batches = calibration_batches(job)
    count = sum(len(batch) for _, batch in batches)
    job.log(f"codec    {codec.name}, calibrating on {count} views")
    job.progress.start("calibration", count)

    def outputs() -> Iterator[TeacherOutput]:
        for _, views, _ in job.loader(batches).batches(skip_broken=job.sections.cache.quarantine):
            yield job.teacher(views)
            job.progress.advance(len(views), 0)

    codec.calibrate(outputs())
    job.progress.stop()
    save_codec(codec, root, {"views": count})
    return codec


def calibration_batches(job: Job) -> list[Any]:
    """Batches of equal padded shape over a seeded sample of the first pass's views."""
    seed, limit = job.sections.views.seed, job.sections.cache.calibration_views
    sample = sorted(job.images.ids, key=lambda image: mix(seed, -1, image))[:limit]
    return [batch for shard in plan_views(job.images, job.views, 0, job.plan["layout"], sample) for batch in shard.batches]


def cache_pass(job: Job, codec: Codec, number: int) -> int:
    """Compute what is missing of one pass. Returns the number of samples computed."""
    folder, plan_digest = pass_folder(job.root, number), digest(job.plan)
    if not (folder / "plan.json").exists():
        shards = plan_views(job.images, job.views, number, job.plan["layout"])
        write_json(folder / "plan.json", {"pass": number, "shards": [shard.to_json() for shard in shards]})
    shards = load_pass_plan(job.root, number)
    quarantine = Quarantine(folder)
    kept = [shard.without(set(quarantine.images)) for shard in shards]
    missing = [
        n
        for n, shard in enumerate(kept)
        if not shard_done(job.root, number, n, plan_digest, [(image, view) for image, view, _ in shard.samples])
    ]
    if missing or not (folder / "manifest.json").exists():
        (folder / "manifest.json").unlink(missing_ok=True)  # a pass is complete only when its manifest is there
        total = sum(len(kept[n].samples) for n in missing)
        job.progress.start(f"pass {number + 1}", total)
        for n in missing:
            shard = kept[n]
            if job.sections.cache.quarantine:
                shard = shard.without(quarantine.search(job.loader(shard.batches)))
            head = {"pass": number, "shard": n, "plan": plan_digest, "recipe": job.plan["recipe_digest"]}
            write_shard(job.teacher, codec, job.loader(shard.batches), shard, folder / shard_name(n), head,
                        digest(read_json(job.root / "codec.json")), job.progress.advance)  # fmt: skip
        job.progress.stop()
        kept = [shard.without(set(quarantine.images)) for shard in shards]
        write_manifest(
            job.root, number, plan_digest, len(shards), raw_fp16(job, kept, codec), quarantine.rows(), environment()
        )
    return sum(len(kept[n].samples) for n in missing)


class Quarantine:
    """Images of a pass that cannot be read, kept in quarantine.json; only where the config asks for it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "quarantine.json"
        self.images: dict[int, str] = {}
        if self._path.exists():
            self.images = {image: reason for image, reason in read_json(self._path)}

    def search(self, loader: ViewLoader) -> set[int]:
        """Read every view once; remember those that fail."""
        found = {image: str(error) for image, error in loader.broken()}
        if found:
            self.images |= found
            write_json(self._path, self.rows())
        return set(self.images)

    def rows(self) -> list[list[Any]]:
        return [[image, reason] for image, reason in sorted(self.images.items())]


def raw_fp16(job: Job, shards: list[ShardPlan], codec: Codec) -> int:
    """Bytes that the same tensors take as plain fp16 (the map in one byte), the yardstick of the summary."""
    per_position = 2 * (codec.channels + codec.score_channels) + 1
    samples = (pad for shard in shards for _, _, pad in shard.samples)
    return sum(positions(job.teacher.levels(pad)) * per_position for pad in samples)


def summarise(root: Path, images: int, computed: int, seconds: float) -> dict[str, Any]:
    """summary.json: what the cache holds and what it cost."""
    cache = Cache(root)
    manifests = [cache.manifest(number) for number in cache.passes()]
    if not manifests:
        raise CacheError(f"{root}: no pass was completed")
    samples, size = sum(m["samples"] for m in manifests), sum(m["bytes"] for m in manifests)
    raw = sum(m["raw_fp16_bytes"] for m in manifests)
    return {
        "images": images,
        "views": samples,
        "passes": len(manifests),
        "bytes": size,
        "bytes_per_view": round(size / max(1, samples), 1),
        "fp16_bytes": raw,
        "ratio_to_fp16": round(raw / max(1, size), 2),
        "views_computed": computed,
        "quarantined": sum(len(m["quarantine"]) for m in manifests),
        "seconds": round(seconds, 2),
        "codec": cache.recipe["codec"]["type"],
        "recipe": cache.plan["recipe_digest"],
        "content": cache.content(),
    }
