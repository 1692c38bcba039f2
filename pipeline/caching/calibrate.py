"""Calibration: the codec's bases and tables from a seeded sample of views, once per cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.plan import mix
from pipeline.caching.job import Job
from pipeline.codec import codec_settings, load_codec, new_codec, save_codec
from pipeline.codec.base import Codec
from pipeline.mm import plain
from pipeline.planning import plan_views
from pipeline.records import TeacherOutput


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

    try:
        codec.calibrate(outputs())
    finally:
        job.progress.stop()
    save_codec(codec, root, {"views": count})
    return codec


def calibration_batches(job: Job) -> list[Any]:
    """Batches of equal padded shape over a seeded sample of the first pass's views."""
    seed, limit = job.sections.views.seed, job.sections.cache.calibration_views
    sample = sorted(job.images.ids, key=lambda image: mix(seed, -1, image))[:limit]
    shards = plan_views(job.images, job.views, 0, job.plan["layout"], sample)
    return [batch for shard in shards for batch in shard.batches]
