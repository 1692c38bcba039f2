"""Make one pass over the images: compute missing shards and keep complete ones."""

from __future__ import annotations

from collections import Counter

from pipeline.budget import BUDGET
from pipeline.cache.canonical import digest, read_json, write_json
from pipeline.cache.layout import load_pass_plan, pass_folder
from pipeline.cache.manifest import shard_done, write_manifest
from pipeline.cache.plausible import require_plausible_view
from pipeline.cache.quarantine import Quarantine
from pipeline.cache.shard_plan import ShardPlan
from pipeline.codecs.base import Codec
from pipeline.data.replay import library_versions
from pipeline.data.shard_planning import is_empty, plan_views, require_images
from pipeline.errors import CodecError
from pipeline.progress import MANY_IMAGES
from pipeline.stage1.job import Job
from pipeline.stage1.loop import make_shards
from pipeline.storage.files import discard
from pipeline.storage.place import call_each


def cache_pass(job: Job, codec: Codec, number: int) -> int:
    """Compute the missing shards of one pass on all ranks. Return the number of their samples."""
    folder = pass_folder(job.root, number)
    planned = load_or_create_shard_plan(job, number)
    shards = Quarantine.load(folder).apply(planned)
    missing = job.ranks.broadcast(find_missing_shards(job, number, shards) if job.ranks.is_leader else [])
    samples = sum(len(shards[n].samples) for n in missing)
    require_affordable(job, codec, shards)
    if missing or not (folder / "manifest.json").exists():
        if job.ranks.is_leader:
            discard(folder / "manifest.json")  # a pass is complete once it has a manifest
        job.progress.start(f"pass {number}", samples)
        try:
            make_shards(job, codec, number, shards, missing)
            job.ranks.wait_for_all()
        finally:
            job.progress.stop()
        if job.ranks.is_leader:
            finish_pass(job, codec, number, planned)
        job.ranks.wait_for_all()
    return samples


def load_or_create_shard_plan(job: Job, number: int) -> list[ShardPlan]:
    """Read the shard plan of a pass. The leader writes it before the first shard is made.

    Raise StaleCache where its images are not those of the config's data set.
    """
    if job.ranks.is_leader and not (pass_folder(job.root, number) / "plan.json").exists():
        if len(job.images) > MANY_IMAGES:
            job.log(f"plan     pass {number}: sizes of the views of {len(job.images)} images")
        write_shard_plan(job, number, plan_views(job.images, job.views, number, job.plan["layout"]))
    job.ranks.wait_for_all()
    shards = load_pass_plan(job.root, number)
    planned = {image for shard in shards for image, _, _ in shard.samples}
    if job.ranks.is_leader:
        record_empty_views(job, number, planned)
    job.ranks.wait_for_all()
    require_images(job.root, number, planned | Quarantine.load(pass_folder(job.root, number)).images, job.images)
    return shards


def record_empty_views(job: Job, number: int, planned: set[int]) -> None:
    """List in the quarantine of a pass the images that its shard plan leaves out because their view has no box."""
    known = Quarantine.load(pass_folder(job.root, number))
    missing = sorted(set(job.images.ids) - planned - known.images)
    empty = [image for image in missing if is_empty(job.images, job.views, number, image)]
    if empty:
        job.log(f"views    {len(empty)} of {len(job.images)} in pass {number} have no box left and are left out")
        reasons = {image: "no box is left in its view" for image in empty}
        Quarantine({**known.reasons, **reasons}).save(pass_folder(job.root, number))


def require_affordable(job: Job, codec: Codec, shards: list[ShardPlan]) -> None:
    """Raise CodecError where views are so large that no reader would decode them."""
    sizes = Counter[tuple[int, int]]()  # the largest batch of each padded shape
    for shard in shards:
        for pad, batch in shard.batches:
            sizes[pad] = max(sizes[pad], len(batch))
    for pad, size in sorted(sizes.items()):
        levels = job.teacher.levels(pad)
        try:
            require_plausible_view(levels, pad, codec.all_channels)
            codec.require_affordable([levels] * size)
        except ValueError as error:
            raise CodecError(
                f"views of padded shape {pad}: {error}; use smaller views, another teacher or a smaller "
                "cache.batch_size"
            ) from error


def write_shard_plan(job: Job, number: int, shards: list[ShardPlan]) -> None:
    """Write plan.json of a pass."""
    content = {"pass": number, "shards": [shard.to_json() for shard in shards]}
    write_json(pass_folder(job.root, number) / "plan.json", content, BUDGET.plan_values)


def find_missing_shards(job: Job, number: int, shards: list[ShardPlan]) -> list[int]:
    """Return the numbers of the shards that are missing, damaged, or of another plan or codec."""
    plan, codec = digest(job.plan), digest(read_json(job.root / "codec.json"))

    def is_done(n: int) -> bool:
        return shard_done(job.root, number, n, plan, codec, [row[:2] for row in shards[n].samples])

    done = call_each(job.root, is_done, range(len(shards)))
    return [n for n, complete in enumerate(done) if not complete]


def finish_pass(job: Job, codec: Codec, number: int, planned: list[ShardPlan]) -> None:
    """Write the manifest, which makes a pass complete. All its shards must exist."""
    quarantine = Quarantine.load(pass_folder(job.root, number))
    raw = count_fp16_bytes(job, codec, quarantine.apply(planned))
    plan, version = digest(job.plan), job.plan["version"]
    write_manifest(job.root, number, plan, len(planned), raw, quarantine.rows, library_versions(), version)


def count_fp16_bytes(job: Job, codec: Codec, shards: list[ShardPlan]) -> int:
    """Return the bytes of the same tensors as fp16, with one byte for the map. The summary compares with it."""
    samples = (pad for shard in shards for _, _, pad in shard.samples)
    grids = Counter(job.teacher.levels(pad) for pad in samples)
    return sum(count * codec.fp16_bytes(levels) for levels, count in grids.items())
