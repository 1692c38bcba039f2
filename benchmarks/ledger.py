"""Compute hours and GPU memory for N students of 24 epochs, with the teacher in the loop and with a cache.

python benchmarks/ledger.py --step docs/results/step.json --cache docs/results/cache.json

The hours of a cache include stage 1. This script measures nothing. Seconds per step come from benchmarks/step.py, and
stage 1's images per second from benchmarks/cache.py. The hours apply to the machine and size of those measurements.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

IMAGES = 117266  # images of train2017 with mmdet's filter_cfg


def select_rows(rows: list[dict[str, Any]], precision: str, batch_size: int | None) -> dict[str, dict[str, Any]]:
    """Return the row of every variant for loaded batches of this precision and size (None: the first size)."""
    found = [row for row in rows if (row["batches"], row["precision"]) == ("loaded", precision)]
    found = [row for row in found if row["batch_size"] == (batch_size or found[0]["batch_size"])]
    if not found:
        sys.exit(
            f"error: --step has no row with loaded batches of {batch_size or 'any size'} in {precision}; run "
            "benchmarks/step.py with these settings"
        )
    return {row["variant"]: row for row in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--students", type=int, nargs="+", default=[1, 2, 3, 5, 10])
    args = parser.parse_args()
    step, cache = (json.loads(path.read_text()) for path in (args.step, args.cache))
    if any(step[key] != cache[key] for key in ("config", "scales")):
        sys.exit(f"error: {args.step} and {args.cache} differ in config or scales; measure both with the same config")
    sides = select_rows(step["rows"], args.precision, args.batch_size)
    steps = math.ceil(args.images / sides["alone"]["batch_size"]) * args.epochs
    hours = {name: steps * row["seconds_a_step"] / 3600 for name, row in sides.items()}
    stage1 = args.images * args.views / mean(row["stage1_per_second"] for row in cache["rows"]) / 3600
    rows: list[dict[str, Any]] = []
    for n in args.students:
        live, cached = n * hours["live"], stage1 + n * hours["cached"]
        rows.append(
            {
                "students": n,
                "live_h": live,
                "cached_h": cached,
                "of_it_stage1_h": stage1,
                "alone_h": n * hours["alone"],
                "live_over_cached": live / cached,
            }
        )
    print(common.table(rows, list(rows[0])))
    gained = hours["live"] - hours["cached"]
    ahead = math.ceil(stage1 / gained) if gained > 0 else None
    memory = {name: row["memory_mb"] for name, row in sides.items()}
    print(f"the cache is faster from {ahead} students on; memory of a step in MB: {memory}")
    common.write(
        args.json,
        rows,
        precision=args.precision,
        epochs=args.epochs,
        images=args.images,
        ahead_from_student=ahead,
        memory_mb=memory,
        measured_on={"step": step["machine"], "cache": cache["machine"]},
    )


if __name__ == "__main__":
    main()
