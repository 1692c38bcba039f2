"""Measure requests per sample and views per second of a remote cache, with and without the disk cache.

python benchmarks/remote.py --json docs/results/remote.json

The cache contains random bytes, SAMPLE bytes per view. The server is another process on this machine. It waits DELAY
seconds before each answer, like a store in the same region. The requests for data sets of other sizes are counted from
stage 2's schedule, without reading.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from pipeline.cache.cache import FORMAT, Cache
from pipeline.cache.canonical import digest, write_json
from pipeline.cache.items import Item
from pipeline.cache.layout import pass_folder, shard_name
from pipeline.cache.manifest import write_manifest
from pipeline.cache.prefetch import BATCHES, BYTES, read_batches
from pipeline.cache.shard_index import encode_index
from pipeline.cache.shard_plan import ShardPlan, references
from pipeline.cache.version2 import encode_sample, sample_member, shard_attributes, shard_head
from pipeline.cache.versions import VERSION
from pipeline.cache.writer import written_shard
from pipeline.data.schedule import Batch, epoch_batches
from pipeline.records import THUMBNAIL, ViewRecord
from pipeline.storage.extents import Sha256Extent
from pipeline.storage.ranges import AHEAD, GAP, group_neighbours
from pipeline.storage.urls import place
from tests.helpers.servers import web_server

SAMPLE, SHARD, SHARDS, DELAY, BATCH = 60_000, 256, 12, 0.03, 16
SIZES = {
    "COCO, 118,000 images of 80 kB": (118_000, 80_000),
    "5,000 images of 80 kB": (5_000, 80_000),
    "500 images of 15 kB": (500, 15_000),
}


def plan_shards(images: int) -> list[ShardPlan]:
    """Return shard plans of images with one view each."""
    rows = [((800, 1088), ((n, 0),)) for n in range(images)]
    return [ShardPlan(tuple(rows[i : i + SHARD])) for i in range(0, images, SHARD)]


def make_cache(root: Path) -> None:
    """Write a complete cache of SHARDS shards with random bytes."""
    settings = {"type": "noise", "channels": 64, "score_channels": 64}
    codec = {"files": {}, "settings": settings, "measured": {}}
    data, layout = {"annotations_sha256": ""}, {"batch_size": 1, "shard_samples": SHARD, "seed": 0}
    recipe = {"teacher": {"name": None}, "data": data, "codec": {"type": "noise"}, "views": {"finite": 1}}
    plan = {
        "format": FORMAT,
        "version": VERSION,
        "recipe": recipe,
        "recipe_digest": "",
        "teacher_sha256": "",
        "layout": layout,
    }
    write_json(root / "plan.json", plan)
    write_json(root / "codec.json", codec)
    shards, rng = plan_shards(SHARDS * SHARD), np.random.default_rng(0)
    write_json(pass_folder(root, 0) / "plan.json", {"pass": 0, "shards": [shard.to_json() for shard in shards]})
    items, levels = [Item("noise", "uint8", None, ("byte",))], ((32, 32),)
    identity = {"pass": 0, "plan": digest(plan), "codec": settings}
    thumbnail = np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for n, shard in enumerate(shards):
        views = [ViewRecord(i, v, (800, 1067), (800, 1067), pad, 0, 0, 0, thumbnail) for i, v, pad in shard.samples]
        index = encode_index(np.stack([view.row(levels) for view in views]), np.stack([thumbnail] * SHARD))
        head = shard_head(shard_attributes({**identity, "shard": n}, items, len(levels)), SHARD, index)
        path = pass_folder(root, 0) / shard_name(n)
        with written_shard(path, VERSION, head, digest(plan), digest(codec)) as writer:
            for at, (image, view, _) in enumerate(shard.samples):
                encoded = encode_sample(items, {"noise": rng.integers(0, 256, SAMPLE, np.uint8)})
                writer.add(image, view, sample_member(items, at, encoded))
    write_manifest(root, 0, digest(plan), len(shards), 0, [], {})


def count(images: int, size: int, workers: int = 2) -> dict[str, float]:
    """Count requests per sample of one epoch, and requested bytes over needed bytes, without sidecars and heads."""
    batches = epoch_batches(references(plan_shards(images), 0), 0, 0, BATCH)
    requests = requested = samples = 0
    step = min(BATCHES, -(-BYTES // (BATCH * size)))
    for worker in range(workers):
        own = batches[worker::workers]
        for start in range(0, len(own), step):
            refs = sorted((ref.shard, ref.index) for batch in own[start : start + step] for ref in batch)
            for _, group in groupby(refs, key=lambda ref: ref[0]):
                runs = group_neighbours([Sha256Extent(index * size, size, "") for _, index in group], GAP, AHEAD)
                requests += len(runs)
                requested += sum(run[-1].offset + size - run[0].offset for run in runs)
            samples += len(refs)
    return {
        "requests_a_sample": round(requests / samples, 3),
        "bytes_over_needed": round(requested / samples / size, 3),
    }


def serve(root: Path, answers: Any) -> None:
    """Serve until a false message arrives. Answer each true message with the number of requests since then."""
    with web_server(root) as handler:
        handler.delay = DELAY
        answers.send(handler.address)
        while answers.recv():
            answers.send(len(handler.asked))
            handler.asked.clear()


def measure(cache: Cache, batches: list[Batch], prefetch: bool, answers: Any) -> dict[str, float]:
    """Read an epoch in one process. Return views per second and requests per sample."""
    one_by_one = ([(ref, cache.shard(0, ref.shard).chunks(ref.index)) for ref in batch] for batch in batches)
    answers.send(True)
    answers.recv()
    begun = time.perf_counter()
    views = sum(len(found) for found in (read_batches(cache, batches) if prefetch else one_by_one))
    seconds = time.perf_counter() - begun
    answers.send(True)
    return {"views_a_second": round(views / seconds, 1), "requests_a_sample": round(answers.recv() / views, 3)}


def main() -> None:
    parser = common.parser(__doc__)
    args = parser.parse_args()
    about = {"machine": f"{os.cpu_count()} CPU cores, shared", "date": time.strftime("%Y-%m-%d"), "delay": DELAY}
    found: dict[str, Any] = {
        **about,
        "command": "python benchmarks/remote.py",
        "counted": {name: count(*size) for name, size in SIZES.items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "cache"
        make_cache(root)
        pipe, server_pipe = multiprocessing.get_context("spawn").Pipe()
        server = multiprocessing.get_context("spawn").Process(
            target=serve, args=(Path(folder), server_pipe), daemon=True
        )
        server.start()
        url = f"{pipe.recv()}/cache"
        disk = place(url, local=f"{folder}/disk", local_gb=10)
        epochs = [epoch_batches(Cache(root).references(0), 0, epoch, BATCH) for epoch in (0, 1)]
        found["measured"] = {
            "one request after another": measure(Cache(url), epochs[0][:20], False, pipe),
            "prefetched": measure(Cache(url), epochs[0], True, pipe),
            "with a disk cache, first epoch": measure(Cache(disk), epochs[0], True, pipe),
            "with a disk cache, second epoch": measure(Cache(disk), epochs[1], True, pipe),
            "in a folder": measure(Cache(root), epochs[0], True, pipe),
        }
        server.terminate()
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
