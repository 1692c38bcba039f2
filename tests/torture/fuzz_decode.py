"""Altered samples under right checksums, decoded as `verify --deep`, `export`, `report` and stage 2 do it.

A mutation alters the arrays of a sample (tokens, entropy-coded bytes, map, float32), or their items; then the items are
packed again, with a right crc32c, tar header, extent and sidecar. Each execution ends in a PipelineError of one line or
in finite values. Mutation n of a seed is always the same. The parent process watches the memory of the process that
decodes, as the kernel reports it.

python -m tests.torture.fuzz_decode --count 200000 --out docs/results/trust_fuzz_decode.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cli.command import message_of
from pipeline.errors import PipelineError
from pipeline.text import one_line
from tests.helpers.decode_target import Target
from tests.helpers.forks import in_child
from tests.helpers.stages import stage1
from tests.torture.common import record, small_config

CACHES = {"frs, version 1": ("frs", 1), "frs": ("frs", 2), "frs2": ("frs2", 2), "lossless": ("lossless", 2)}
SLOW = 2.0  # CPU seconds of one execution that count as a hang
GROWN = 400  # MB that the process may grow by


def fuzz(roots: dict[str, str], seed: int, first: int, count: int, out: Path) -> None:
    """Run executions `first` to `count`. Write the figures often."""
    torch.set_num_threads(1)
    targets = {name: Target(Path(root)) for name, root in roots.items()}
    taken, slowest, begun = {name: Counter[str]() for name in targets}, 0.0, time.process_time()
    for n in range(first, count):
        name = list(targets)[n % len(targets)]
        before = time.process_time()
        try:
            targets[name](np.random.default_rng((seed, n)), taken[name])
        except PipelineError as error:
            assert one_line(message_of(error)) == message_of(error) and len(message_of(error)) < 1500, (seed, n)
            taken[name]["refused"] += 1
        except BaseException:
            taken[name]["crashes"] += 1
            print(f"seed {seed}, execution {n}, {name}:\n{traceback.format_exc()}", flush=True)
        slowest = max(slowest, time.process_time() - before)
        if n % 200 == 199 or n == count - 1:
            seconds = round(time.process_time() - begun, 1)
            figures = {"executions": n + 1, "slowest_cpu_seconds": round(slowest, 3), "cpu_seconds": seconds}
            out.write_text(json.dumps({**figures, "by_cache": {key: dict(value) for key, value in taken.items()}}))


def watch(child: int, limit: int) -> int:
    """Wait for a process. Return its largest memory in kB; end it where that is above `limit`."""
    largest = 0
    while os.waitpid(child, os.WNOHANG)[0] != child:
        status = Path(f"/proc/{child}/status").read_text()
        largest = max([largest, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
        if largest > limit:
            os.kill(child, 9)
        time.sleep(0.2)
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--first", type=int, default=0, help="the first execution, to repeat one")
    parser.add_argument("--seconds", type=int, default=10**6, help="CPU seconds after which no execution begins")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--caches", type=Path, help="folder of the caches, made if it is missing (default: temporary)")
    parser.add_argument("--out", type=Path)
    args, begun = parser.parse_args(), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.caches or Path(temporary)
        roots = {}
        for name, (codec, version) in CACHES.items():
            work = folder / f"{codec}-{version}"
            if not (work / "cache/summary.json").exists():
                os.waitpid(in_child(lambda w=work, c=codec, v=version: stage1(small_config(w, c, 6, v))), 0)
            roots[name] = str(work / "cache")
        out = Path(temporary) / "figures.json"
        base = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
        child = in_child(limited, args.seconds, fuzz, roots, args.seed, args.first, args.count, out)
        largest = watch(child, base + GROWN * 1024)
        found = json.loads(out.read_text())
    crashes = sum(one.get("crashes", 0) for one in found["by_cache"].values())
    found["decoded"] = sum(
        n for one in found["by_cache"].values() for key, n in one.items() if key.startswith("decoded")
    )
    found |= {"crashes": crashes, "hangs": int(found["slowest_cpu_seconds"] > SLOW)}
    found |= {"largest_mb": round(largest / 1024, 1), "memory_before_mb": round(base / 1024, 1)}
    found["decoded_per_cpu_second"] = round(found["decoded"] / found["cpu_seconds"], 1)
    record(args, begun, found)
    raise SystemExit(bool(crashes or found["hangs"] or largest > base + GROWN * 1024))


def limited(seconds: int, work: Any, *given: Any) -> None:
    """Run work that the kernel ends after some CPU seconds. Its figures are then those of its last note."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    work(*given)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
