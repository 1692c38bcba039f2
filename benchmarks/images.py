"""Measure what stored image files cost (cache.images=True): bytes, stage 1, reading, and requests of a remote cache.

python benchmarks/images.py --json docs/results/images.json      # the demo's data; needs its data and teacher

Stage 1: CPU seconds of a pass, and of storing the files. Reading: CPU seconds of a view of stage 2's stream, which
replays it, from the image folder and from the cache, in turns. Requests: counted from stage 2's schedule for 118,000
images, two passes, with and without a disk cache, as `benchmarks/remote.py` counts those of samples.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from pipeline.cache.inspect import describe
from pipeline.cache.shard_plan import mix
from pipeline.data.schedule import epoch_batches
from pipeline.data.stream import Stream
from pipeline.progress import Silent
from pipeline.records import SampleRef
from pipeline.stage1.run import cache_teacher
from pipeline.stage2.teacher_data import prepare_teacher_data
from pipeline.storage.ranges import BLOCK

IMAGES, FILE, SAMPLE, SHARD, BATCH, ROUNDS = 118_000, 165_000, 83_000, 256, 16, 3


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of one call, of this process and of its children that ended."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def measure_stage1(args: Any, folder: str) -> dict[str, Any]:
    """Make a cache, then add its files. Return bytes and CPU milliseconds of both."""
    options = {"cache.dir": f"{folder}/cache", "cache.workers": 0, "cache.passes": 2, "teacher.gate_images": 2}

    def run(images: bool) -> dict[str, Any]:
        cfg, sections = common.load(args, {**options, "cache.images": images})
        return cache_teacher(cfg, sections, print, Silent())

    summary: dict[str, Any] = {}
    first = cpu_seconds(lambda: summary.update(run(False)))
    # Opening the job and verifying costs the same in both later runs; the difference is that of the files.
    again, files = cpu_seconds(lambda: run(False)), cpu_seconds(lambda: run(True))
    found = describe(f"{folder}/cache")
    return {
        "images": found["images"],
        "views": found["views"],
        "bytes_of_views": found["bytes"],
        "bytes_of_files": found["stored_images"]["bytes"],
        "stage1_ms_a_view": 1e3 * (first - again) / found["views"],
        "files_ms_an_image": 1e3 * (files - again) / found["images"],
    }


def measure_stream(args: Any, folder: str) -> dict[str, float]:
    """Return the CPU milliseconds of a view of the stream, from the folder and from the cache, and their ratio."""
    streams = {}
    for images in (False, True):
        cfg, sections = common.load(args, {"cache.dir": f"{folder}/cache", "cache.images": images, "cache.passes": 2})
        streams[images] = Stream(prepare_teacher_data(cfg, sections).stream, BATCH, seed=0)
    times: dict[bool, list[float]] = {False: [], True: []}
    views = sum(map(len, streams[False].batches()))
    for turn in range(ROUNDS + 1):
        for images in (False, True) if turn % 2 else (True, False):
            streams[images].set_epoch(turn % 2)
            times[images].append(1e3 * cpu_seconds(partial(list, streams[images])) / views)
    ratios = [b / a for a, b in zip(times[False][1:], times[True][1:])]
    return {
        "folder_ms_a_view": median(times[False][1:]),
        "cache_ms_a_view": median(times[True][1:]),
        "cache_over_folder": median(ratios),
    }


def count_requests() -> dict[str, Any]:
    """Count requests for files and for samples of two epochs, one of each pass."""
    order = {n: sorted(range(IMAGES), key=lambda image: mix(0, n, image)) for n in (0, 1)}
    place = {image: at for at, image in enumerate(order[0])}  # of its file
    found: dict[str, Any] = {}
    cached: set[tuple[int, int]] = set()
    for epoch in (0, 1):
        refs = [
            SampleRef(epoch, at // SHARD, at % SHARD, image, 0, (800, 1088)) for at, image in enumerate(order[epoch])
        ]
        shards = [list(group) for _, group in groupby(refs, key=lambda ref: ref.shard)]
        files, blocks = 0, 0
        for batch in epoch_batches(shards, 0, epoch, BATCH):
            at = sorted(place[ref.image_id] for ref in batch)
            files += sum(b != a + 1 for a, b in zip([-2, *at], at))
            needed = {(n // SHARD, n % SHARD * FILE // BLOCK) for n in at} - cached
            cached |= needed
            blocks += len(needed)
        found[f"epoch_{epoch}"] = {
            "requests_for_files_a_view": files / IMAGES,
            "with_a_disk_cache": blocks / IMAGES,
        }
    gigabytes = {"once": IMAGES * FILE / 1e9, "in_each_of_12_passes": 12 * IMAGES * FILE / 1e9}
    return {**found, "gigabytes_of_files": gigabytes, "gigabytes_of_views_of_12_passes": 12 * IMAGES * SAMPLE / 1e9}


def main() -> None:
    parser = common.parser(__doc__)
    common.add_config(parser)
    args = parser.parse_args()
    common.quiet()
    with tempfile.TemporaryDirectory() as folder:
        row = {**measure_stage1(args, folder), **measure_stream(args, folder)}
    print(common.table([row], list(row)))
    counted = count_requests()
    print(counted)
    common.write(args.json, [row], config=args.config, counted=counted)


if __name__ == "__main__":
    main()
