"""Compare stage 1 with the teacher alone: images per second, and memory.

python benchmarks/cache.py --json docs/results/cache.json                            # the demo, CPU
python benchmarks/cache.py --config configs/coco/retinanet_r101_r50_2x.py ...        # real size, on a GPU

Both load the same batches with their own workers and run the same teacher. Stage 1 also encodes, compresses and writes.
They alternate over the shards of one pass. On cores that are never idle, stage 1 can at most reach the bare teacher's
share of stage 1's CPU time, which is printed too. benchmarks/reading.py measures reading.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `frs-cache` does

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.launches import BusyShare
from pipeline.cache.canonical import write_json
from pipeline.cache.shard_plan import ShardPlan
from pipeline.progress import Silent
from pipeline.stage1.job import Job, open_job
from pipeline.stage1.loop import make_shards
from pipeline.stage1.passes import load_or_create_shard_plan
from pipeline.stage1.run import prepare_codec


def run_teacher(job: Job, shards: list[ShardPlan]) -> None:
    """Load the images and run the teacher. One value of each output is read, so the GPU has finished."""
    loader = job.loader((shard, batch) for shard in shards for batch in shard.batches)
    for _, batch in loader.batches():
        float(job.teacher(batch.views).frs[-1].sum())


def measure(part: Callable[[], None], device: torch.device) -> tuple[float, float, float | None]:
    """Return the seconds of one call, its CPU seconds with those of the workers, and the GPU's share of busy time."""
    begun = cpu_seconds()
    with BusyShare(device) as busy:
        took = common.seconds(part)
    return took, cpu_seconds() - begun, busy.value


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its ended workers."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def resident_mb() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    parser = common.parser(__doc__)
    common.add_config(parser)
    parser.add_argument("--codec-of", type=Path, metavar="CACHE", help="use its codec instead of calibrating one")
    parser.add_argument("--shards", type=int, default=2, help="shards per turn")
    parser.add_argument("--turns", type=int, default=0, help="0: all shards of the pass")
    parser.add_argument("--rounds", type=int, default=1, help="how often to make them")
    args = parser.parse_args()
    common.quiet()
    with tempfile.TemporaryDirectory() as folder:
        cfg, sections = common.load(args, {"cache.dir": f"{folder}/cache"})
        job = open_job(cfg, sections, print, Silent())
        write_json(job.root / "plan.json", job.plan)  # skip the gate: the teacher's mAP does not matter here
        write_json(job.root / "gate.json", {"mAP": 1.0, "images": 0})
        if args.codec_of:
            shutil.copytree(args.codec_of / "codec", Path(folder, "cache", "codec"))
            shutil.copy(args.codec_of / "codec.json", Path(folder, "cache"))
        job, codec = prepare_codec(cfg, job, None)
        shards = load_or_create_shard_plan(job, 0)
        rows: list[dict[str, Any]] = []
        turns = [list(range(n, min(n + args.shards, len(shards)))) for n in range(0, len(shards), args.shards)]
        for turn, numbers in enumerate((turns[: args.turns or None]) * args.rounds):
            taken = [shards[n] for n in numbers]
            sides: dict[str, Callable[[], None]] = {
                "bare": partial(run_teacher, job, taken),
                "stage1": partial(make_shards, job, codec, 0, shards, numbers),
            }
            order = sorted(sides, reverse=turn % 2 == 1)
            found = {name: measure(sides[name], job.teacher.device) for name in order}
            images = sum(len(shard.samples) for shard in taken)
            row: dict[str, Any] = {"images": images, "resident_mb": resident_mb()}
            for name, (took, cpu, busy) in found.items():
                row |= {f"{name}_per_second": images / took, f"{name}_cpu_ms": cpu / images * 1e3}
                row[f"{name}_gpu_busy"] = busy
            rows.append(row)
            print(common.table(rows[-1:], list(rows[0])), flush=True)
    ratio = median(row["stage1_per_second"] / row["bare_per_second"] for row in rows)
    share = median(row["bare_cpu_ms"] / row["stage1_cpu_ms"] for row in rows)
    growth = rows[-1]["resident_mb"] - rows[len(rows) // 4]["resident_mb"]
    images = sum(row["images"] for row in rows)
    print(f"stage1_over_bare {ratio:.3f} (share of CPU time {share:.3f}) over {images} images, memory {growth:+.0f} MB")
    result = {"stage1_over_bare": ratio, "bare_over_stage1_cpu": share, "memory_growth_mb": growth}
    common.write(args.json, rows, config=args.config, threads=torch.get_num_threads(), **common.setting(cfg), **result)


if __name__ == "__main__":
    main()
