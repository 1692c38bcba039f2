"""kill -9 of processes that share one `cache.local`: those that live read right bytes, and the disk's limit holds.

One process reads a cache from a web server again and again. Others do the same for up to a second each, and are killed.

python -m tests.torture.share_disk --count 100 --out docs/results/trust_share_disk.json
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

from pipeline.cache.cache import Cache
from tests.helpers.servers import web_server
from tests.helpers.shared_disk import LIMIT, digests, read_all, used
from tests.helpers.stages import stage1
from tests.torture.common import arguments, record, small_config


def read_until(stop: Event, begun: Event, url: str, disk: str, wanted: list[str]) -> None:
    """Read a cache through the shared disk cache until `stop` is set. `begun` is set after the first round."""
    rounds = 0
    while not stop.is_set():
        read_all(url, disk, wanted)
        begun.set()
        rounds += 1
    print(f"{rounds} rounds of {len(wanted)} samples", flush=True)


def main() -> None:
    args, begun = arguments(__doc__, 100), time.perf_counter()
    rng, spawn, wrong, largest = random.Random(args.seed), multiprocessing.get_context("spawn"), list[str](), 0
    with tempfile.TemporaryDirectory() as folder, web_server(Path(folder)) as web:
        stage1(small_config(Path(folder), "frs"))
        wanted, disk = digests(Cache(Path(folder) / "cache")), Path(folder) / "disk"
        stop, read = spawn.Event(), spawn.Event()
        given = (f"{web.address}/cache", str(disk), wanted)
        stays = spawn.Process(target=read_until, args=(stop, read, *given))
        stays.start()
        read.wait(120)
        for number in range(args.count):
            reads = spawn.Event()
            other = spawn.Process(target=read_until, args=(stop, reads, *given))
            other.start()
            if rng.random() < 0.5:  # the other half is killed while it starts or reads for the first time
                reads.wait(120)
            time.sleep(rng.uniform(0, 1))
            os.kill(other.pid or 0, signal.SIGKILL)
            other.join()
            largest = max(largest, used(disk))
            if other.exitcode != -signal.SIGKILL:
                wrong.append(f"kill {number}: the process had ended with {other.exitcode}")
        stop.set()
        stays.join(120)
        if stays.exitcode != 0:
            wrong.append(f"the process that stays ended with {stays.exitcode}")
        if largest > LIMIT * 1e9 + 4096:
            wrong.append(f"{largest} bytes were used, of {LIMIT * 1e9:.0f}")
    record(args, begun, {"kills": args.count, "limit": round(LIMIT * 1e9), "largest_used": largest, "wrong": wrong})
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
