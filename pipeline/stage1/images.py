"""Store the file of every cached image once, in shards of their own (cache.images=True)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from torch.utils.data import DataLoader, Dataset

from pipeline.budget import BUDGET
from pipeline.cache.cache import Cache
from pipeline.cache.canonical import write_json
from pipeline.cache.image_shards import (
    FOLDER,
    image_shard_done,
    load_image_manifest,
    load_image_plan,
    write_image_manifest,
    write_image_shard,
)
from pipeline.cache.layout import shard_name
from pipeline.data.images import Images
from pipeline.data.replay import check_replay
from pipeline.data.views import Views
from pipeline.errors import PipelineError
from pipeline.records import SampleRef, ViewRecord
from pipeline.stage1.job import Job
from pipeline.stage1.loader import keep_as_loaded
from pipeline.storage.files import discard
from pipeline.storage.place import call_each

Claimed = tuple[int, int, int]  # shard, image id, view
Loaded = tuple[int, int, bytes, ViewRecord]


def store_images(job: Job) -> None:
    """Store the files of the images of all complete passes that are not stored yet.

    A cache that has images/ keeps it complete, also where the config does not ask for it. Each file is replayed, and
    its pixels are compared with those that the teacher saw.
    """
    folder = job.root / FOLDER
    if not (job.sections.cache.images or (folder / "plan.json").exists()):
        return
    cache = Cache(job.root)
    first = find_first_views(cache)
    if job.ranks.is_leader:
        plan_images(job, first)
    job.ranks.wait_for_all()
    shards = load_image_plan(job.root)
    missing = job.ranks.broadcast(find_missing(job, shards) if job.ranks.is_leader else [])
    if not missing and load_image_manifest(job.root) is not None:
        return
    if job.ranks.is_leader:
        discard(folder / "manifest.json")
    job.progress.start("images", sum(len(shards[n]) for n in missing))
    try:
        write_shards(job, cache, first, shards, missing)
        job.ranks.wait_for_all()
    finally:
        job.progress.stop()
    if job.ranks.is_leader:
        write_image_manifest(job.root, cache.plan_digest)
    job.ranks.wait_for_all()


def find_first_views(cache: Cache) -> dict[int, SampleRef]:
    """Return the first sample of each image in the complete passes, in the order of the passes."""
    found: dict[int, SampleRef] = {}
    for number in cache.passes():
        for shard in cache.references(number):
            for ref in shard:
                found.setdefault(ref.image_id, ref)
    return found


def plan_images(job: Job, images: Iterable[int]) -> None:
    """Write the plan of images/. Images that it has already keep their places, and the others follow."""
    path = job.root / FOLDER / "plan.json"
    shards = load_image_plan(job.root) if path.exists() else []
    planned = {image for ids in shards for image in ids}
    new, size = [image for image in images if image not in planned], job.sections.cache.shard_samples
    if new or not path.exists():
        discard(job.root / FOLDER / "manifest.json")
        more = [new[start : start + size] for start in range(0, len(new), size)]
        write_json(path, {"shards": [*shards, *more]}, BUDGET.plan_values)


def find_missing(job: Job, shards: list[list[int]]) -> list[int]:
    """Return the numbers of the shards that are missing or damaged."""
    folder = job.root / FOLDER
    done = call_each(job.root, lambda n: image_shard_done(folder / shard_name(n), shards[n]), range(len(shards)))
    return [n for n, complete in enumerate(done) if not complete]


def write_shards(
    job: Job, cache: Cache, first: dict[int, SampleRef], shards: list[list[int]], missing: list[int]
) -> None:
    """Write this rank's share of the missing shards."""

    def claimed() -> Iterator[Claimed]:
        for n in job.ranks.claim("images", missing):
            yield from ((n, image, first[image].view) for image in shards[n])

    def check(loaded: Loaded) -> tuple[int, str, bytes]:
        _, image, content, record = loaded
        ref, views = first[image], job.sections.views
        reader = cache.shard(ref.cache_pass, ref.shard)
        stored, _ = reader.record(ref.index, reader.chunks(ref.index))
        check_replay(stored, record, views.check, views.tolerance, cache.manifest(ref.cache_pass)["environment"])
        job.progress.advance(1, len(content))
        return image, job.images.info(image)["img_path"], content

    for n, files in groupby(load_files(job, claimed()), key=itemgetter(0)):
        write_image_shard(job.root / FOLDER / shard_name(n), map(check, files))


def load_files(job: Job, claimed: Iterable[Claimed]) -> Iterator[Loaded]:
    """Read and replay files on the loader's workers. Yield them in order. Raise the error of a broken one."""
    dataset: Any = FileDataset(job.images, job.views, job.sections.views.check == "close")
    workers = job.sections.cache.workers
    for loaded in DataLoader(dataset, batch_size=None, sampler=claimed, num_workers=workers, collate_fn=keep_as_loaded):
        if isinstance(loaded, PipelineError):
            raise loaded
        yield loaded


class FileDataset(Dataset):
    """Maps (shard, image id, view) to the image's file and the view's record. A PipelineError is returned.

    thumbnail: see `Views.replay`.
    """

    def __init__(self, images: Images, views: Views, thumbnail: bool) -> None:
        self.images, self.views, self.thumbnail = images, views, thumbnail

    def __getitem__(self, claimed: Claimed) -> Loaded | PipelineError:
        shard, image, view = claimed
        info = self.images.info(image)
        try:
            content = self.views.read_file(info)
            _, _, record = self.views.replay(info, view, self.thumbnail, content)
        except PipelineError as error:
            return error
        return shard, image, content, record
