"""Measure stage 1 beside a busy neighbour: how much longer it takes, with OpenMP threads that sleep and that spin.

python benchmarks/busy.py --json docs/results/busy.json

The neighbour is two processes that multiplies matrices. On a fair machine, stage 1 then takes twice as
long. Each run is a process of its own: a lossless pass of the demo, and only its loop is timed. Runs alternate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

POLICIES = {"sleep": "PASSIVE", "spin": "ACTIVE"}
NEIGHBOUR = "import numpy as np\na = np.ones((300, 300), np.float32)\nwhile True: a @ a"


def one_run(args: Any) -> None:
    """Compute the first shards of a pass, and print the seconds and the CPU seconds of the loop."""
    from benchmarks import common
    from pipeline.cache.canonical import write_json
    from pipeline.progress import Silent
    from pipeline.stage1.job import open_job
    from pipeline.stage1.loop import make_shards
    from pipeline.stage1.passes import load_or_create_shard_plan
    from pipeline.stage1.run import prepare_codec

    common.quiet()
    with tempfile.TemporaryDirectory() as folder:
        options = {"cache.dir": f"{folder}/cache", "cache.codec": {"type": "lossless"}, "cache.shard_samples": 64}
        cfg, sections = common.load(args, options)
        job = open_job(cfg, sections, lambda text: None, Silent())
        write_json(job.root / "plan.json", job.plan)
        write_json(job.root / "gate.json", {"mAP": 1.0, "images": 0})
        job, codec = prepare_codec(cfg, job, None)
        shards = load_or_create_shard_plan(job, 0)
        begun, used = time.perf_counter(), time.process_time()
        make_shards(job, codec, 0, shards, [0])
        print(json.dumps([time.perf_counter() - begun, time.process_time() - used]))


def run(policy: str, busy: bool, arguments: list[str]) -> list[float]:
    """Return the seconds and CPU seconds of stage 1's loop in a process of its own, beside a neighbour or not."""
    single = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    neighbours = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR], env=single) for _ in range(2 * busy)]
    try:
        command = [sys.executable, __file__, "--one-run", *arguments]
        environment = {**os.environ, "OMP_WAIT_POLICY": POLICIES[policy]}
        found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    finally:
        for process in neighbours:
            process.kill()
            process.wait()
    return json.loads(found.splitlines()[-1])


def main() -> None:
    from benchmarks import common

    parser = common.parser(__doc__)
    common.add_config(parser)
    parser.add_argument("--one-run", action="store_true", help="one run, in this process")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.one_run:
        one_run(args)
        return
    given = ["--config", args.config, *(["--options", *args.options] if args.options else [])]
    rows: list[dict[str, Any]] = []
    for number in range(args.rounds):
        for policy in POLICIES:
            quiet, busy = run(policy, False, given), run(policy, True, given)
            row = {"round": number, "threads": policy, "seconds": quiet[0], "busy_seconds": busy[0]}
            row |= {"busy_over_quiet": busy[0] / quiet[0], "cpu_busy_over_quiet": busy[1] / quiet[1]}
            rows.append(row)
            print(common.table(rows[-1:], list(row)), flush=True)
    ratios = {policy: median(row["busy_over_quiet"] for row in rows if row["threads"] == policy) for policy in POLICIES}
    print(ratios)
    load = os.getloadavg()[2]
    common.write(args.json, rows, config=args.config, median_busy_over_quiet=ratios, load_of_the_last_15_minutes=load)


if __name__ == "__main__":
    main()
