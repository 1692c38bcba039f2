"""kill -9 of one of stage 1's two ranks at random moments: all ranks end, and the finished cache has the same bytes.

Each run under torchrun is killed until one gets to its end, as in kill.py. What a killed run leaves visible is what an
undisturbed run writes.

python -m tests.torture.kill_ranks --count 40 --out docs/results/trust_kill_ranks.json
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.helpers.killed_jobs import Stage1, phase
from tests.helpers.kills import wait_for_moment
from tests.helpers.launch import SCRIPTS, finished, launch, ranks_of
from tests.helpers.stages import stage1
from tests.torture.common import arguments, record, small_config

LONGEST = 60  # seconds in which all ranks end after one was killed


def start(job: Stage1) -> subprocess.Popen:
    return launch(SCRIPTS[1], "--config", str(job.config), "--cfg-options", f"cache.dir={job.root}", ranks=2)


def kill_one(process: subprocess.Popen, job: Stage1, delay: float, rng: random.Random) -> bool:
    """Kill a rank behind `delay` seconds, half of the times at the next temporary file. False: all had ended."""
    if not wait_for_moment(lambda: process.poll() is not None, job.root, delay, rng.random() < 0.5):
        return False
    ranks = ranks_of(process)
    if not ranks:
        return False
    os.kill(rng.choice(ranks), signal.SIGKILL)
    return True


def torture(config: Path, folder: Path, wanted: dict[str, str], count: int, rng: random.Random) -> dict[str, Any]:
    """Kill a rank `count` times. Return the figures."""
    begun = time.perf_counter()
    finished(start(Stage1(config, folder / "whole")))
    lasts = round(time.perf_counter() - begun, 2)
    kills, ends, phases, wrong = 0, 0, Counter[str](), list[str]()
    job = Stage1(config, folder / "0")
    while kills < count or ends == 0:
        process = start(job)
        killed = kills < count and kill_one(process, job, rng.uniform(0.2, 0.9) * lasts, rng)
        try:
            out, _ = process.communicate(timeout=LONGEST if killed else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            wrong.append(f"kill {kills}: ranks still ran after {LONGEST} seconds")
            out, _ = process.communicate()
        if process.returncode != 0:
            kills += 1
            phases[phase(job)] += 1
            wrong += [] if killed and "Signal 9" in out else [f"kill {kills}: {out[-1000:]}"]
            wrong += [f"kill {kills}: {name}" for name in job.lost(wanted)]
        else:
            wrong += [] if job.result() == wanted else [f"end {ends} differs"]
            ends += 1
            job = Stage1(config, folder / str(ends))
    return {"kills": kills, "finished": ends, "killed": dict(phases), "wrong": wrong, "seconds_undisturbed": lasts}


def main() -> None:
    args, begun = arguments(__doc__, 40), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = small_config(Path(folder) / "frs", "frs")
        alone = Stage1(config, Path(folder) / "alone")
        stage1(config, **{"cache.dir": str(alone.root)})
        found = torture(config, Path(folder), alone.result(), args.count, random.Random(args.seed))
    record(args, begun, found)
    raise SystemExit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
