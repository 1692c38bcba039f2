"""One pass over the images: what is missing of it is computed, what is whole is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.cache.cache import load_pass_plan, pass_folder, shard_name
from pipeline.cache.files import digest, locked, read_json, write_json
from pipeline.cache.manifest import shard_done, write_manifest
from pipeline.cache.plan import ShardPlan
from pipeline.cache.sidecar import load_sidecar
from pipeline.caching.calibrate import drift
from pipeline.caching.job import Job
from pipeline.caching.loader import ViewLoader
from pipeline.caching.shard import write_shard
from pipeline.codec.base import Codec, positions
from pipeline.planning import plan_views, require_images
from pipeline.replay import environment


def cache_pass(job: Job, codec: Codec, number: int) -> int:
    """Compute what is missing of one pass, shards dealt out to the ranks. Returns how many samples that was."""
    folder, plan_digest = pass_folder(job.root, number), digest(job.plan)
    codec_json = read_json(job.root / "codec.json")
    codec_digest, expected = digest(codec_json), codec_json["measured"]
    if job.ranks.leads and not (folder / "plan.json").exists():
        shards = plan_views(job.images, job.views, number, job.plan["layout"])
        write_json(folder / "plan.json", {"pass": number, "shards": [shard.to_json() for shard in shards]})
    job.ranks.meet()
    shards = load_pass_plan(job.root, number)
    require_images(job.root, number, {image for shard in shards for image, _, _ in shard.samples}, job.images)
    quarantine = Quarantine(folder)
    kept = [shard.without(set(quarantine.images)) for shard in shards]
    missing = job.ranks.told([
        n
        for n, shard in enumerate(kept)
        if job.ranks.leads
        and not shard_done(job.root, number, n, plan_digest, codec_digest, [sample[:2] for sample in shard.samples])
    ])  # fmt: skip
    if missing or not (folder / "manifest.json").exists():
        if job.ranks.leads:
            (folder / "manifest.json").unlink(missing_ok=True)  # a pass is complete only when its manifest is there
        total = sum(len(kept[n].samples) for n in missing)
        job.progress.start(f"pass {number + 1}", total)
        try:
            for n in job.ranks.claim(f"pass {number}", missing):
                shard = kept[n]
                if job.sections.cache.quarantine:
                    shard = shard.without(quarantine.search(job.loader(shard.batches)))
                head = {"pass": number, "shard": n, "plan": plan_digest, "recipe": job.plan["recipe_digest"]}
                path = folder / shard_name(n)
                write_shard(job.teacher, codec, job.loader(shard.batches), shard, path, head, codec_digest,
                            job.progress.advance)  # fmt: skip
                places = sum(positions(job.teacher.levels(pad)) for _, _, pad in shard.samples)
                for line in drift(path, load_sidecar(path.with_suffix(".json")), places, expected):
                    job.log(line)
            job.ranks.meet()
        finally:
            job.progress.stop()
        quarantine = Quarantine(folder)
        kept = [shard.without(set(quarantine.images)) for shard in shards]
        if job.ranks.leads:
            write_manifest(
                job.root, number, plan_digest, len(shards), raw_fp16(job, kept, codec), quarantine.rows(), environment()
            )
        job.ranks.meet()
    return sum(len(kept[n].samples) for n in missing)


class Quarantine:
    """Images of a pass that cannot be read, kept in quarantine.json; only where the config asks for it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "quarantine.json"
        self.images: dict[int, str] = {}
        if self._path.exists():
            self.images = {image: reason for image, reason in read_json(self._path)["images"]}

    def search(self, loader: ViewLoader) -> set[int]:
        """Read every view once; remember those that fail."""
        found = {image: str(error) for image, error in loader.broken()}
        if found:
            with locked(self._path.parent, wait=True):  # other ranks find some too
                self.images |= Quarantine(self._path.parent).images | found
                write_json(self._path, {"images": self.rows()})
        return set(self.images)

    def rows(self) -> list[list[Any]]:
        return [[image, reason] for image, reason in sorted(self.images.items())]


def raw_fp16(job: Job, shards: list[ShardPlan], codec: Codec) -> int:
    """Bytes that the same tensors take as plain fp16 (the map in one byte), the yardstick of the summary."""
    per_position = 2 * (codec.channels + codec.score_channels) + 1
    samples = (pad for shard in shards for _, _, pad in shard.samples)
    return sum(positions(job.teacher.levels(pad)) * per_position for pad in samples)
