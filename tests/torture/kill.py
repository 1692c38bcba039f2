"""kill -9 of stage 1, repair, reencode and stage 2 at random moments: nothing is lost, and the end is the same.

Half of the kills come at any moment of the run, half right after a temporary file was seen. Each run is killed until it
gets to its end; then its files are compared with those of a run that was never disturbed: those of a cache byte for
byte, the last checkpoint of a student by weights, adapters and optimizer.

python -m tests.torture.kill --count 200 --out docs/results/trust_kill.json
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import pipeline.integrity.repair
import pipeline.stage2.train
import pipeline.tools.reencode.run  # noqa: F401  (so that no child has to)
from pipeline.integrity.verify import verify
from tests.helpers.forks import in_child
from tests.helpers.killed_jobs import JOBS, SOURCE, Job, phase
from tests.helpers.kills import kill
from tests.helpers.stages import stage1
from tests.torture.common import arguments, record, small_config


def run_undisturbed(job: Job) -> float:
    """Run a job to its end. Return the seconds that it took."""
    begun = time.perf_counter()
    if os.waitstatus_to_exitcode(os.waitpid(in_child(job.run), 0)[1]):
        raise SystemExit(f"{job.name}: failed without a kill")
    return time.perf_counter() - begun


def make(kind: type[Job], config: Path, folder: Path, name: str) -> Job:
    """Return a new job in a folder of its own."""
    return kind(config, folder / name)


def torture(make: Any, count: int, rng: random.Random) -> dict[str, Any]:
    """Kill a job `count` times. Return the figures."""
    whole = make("whole")
    lasts = run_undisturbed(whole)
    wanted, phases, kills, ends, wrong = whole.result(), Counter[str](), 0, 0, list[str]()
    while kills < count:
        job = make(f"{ends % 2}")
        while kills < count:
            child = in_child(job.run)
            if not kill(child, job.root, rng.uniform(0, 0.9 * lasts), rng.random() < 0.5):
                break
            kills += 1
            phases[phase(job)] += 1
            wrong += [f"kill {kills}: {name}" for name in job.lost(wanted)]
        run_undisturbed(job)
        if job.result() != wanted:
            wrong.append(f"end {ends} differs")
        if (job.root / "codec.json").exists():
            verify(job.root)
        ends += 1
    return {
        "kills": kills,
        "finished": ends,
        "killed": dict(phases),
        "wrong": wrong,
        "seconds_undisturbed": round(lasts, 2),
    }


def main() -> None:
    args, begun = arguments(__doc__, 200), time.perf_counter()
    torch.set_num_threads(1)
    rng, found = random.Random(args.seed), {}
    with tempfile.TemporaryDirectory() as folder:
        configs = {codec: small_config(Path(folder) / codec, codec) for codec in ("lossless", "frs")}
        for config in configs.values():
            os.waitpid(in_child(stage1, config), 0)
        for name, kind in JOBS.items():
            config = configs[SOURCE[name]]
            found[name] = torture(
                lambda n, kind=kind, config=config: kind(config, Path(folder) / kind.name / n), args.count, rng
            )
            print(name, found[name], flush=True)
    record(args, begun, {"by_command": found})
    raise SystemExit(any(one["wrong"] for one in found.values()))


if __name__ == "__main__":
    main()
