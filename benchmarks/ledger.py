"""Hours and GPU memory for N students of 24 epochs: the teacher in the loop against a cache, stage 1 included.

python benchmarks/ledger.py --step docs/results/step.json --cache docs/results/cache.json

Nothing is measured here: seconds a step come from benchmarks/step.py, stage 1's images a second from
benchmarks/cache.py, so the hours are those of the machine and size that these ran at.
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

IMAGES = 117266  # of train2017 under mmdet's filter_cfg


def chosen(rows: list[dict[str, Any]], precision: str, batch_size: int | None) -> dict[str, dict[str, Any]]:
    """The row of every variant, with loaded batches of this precision and size (None: the first that was measured)."""
    fitting = [row for row in rows if (row["batches"], row["precision"]) == ("loaded", precision)]
    fitting = [row for row in fitting if row["batch_size"] == (batch_size or fitting[0]["batch_size"])]
    if not fitting:
        sys.exit(f"error: no step with loaded batches of {batch_size or 'any size'} in {precision} was measured")
    return {row["variant"]: row for row in fitting}


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
        sys.exit(f"error: {args.step} and {args.cache} were measured with different configs or sizes")
    sides = chosen(step["rows"], args.precision, args.batch_size)
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
    print(f"cached is ahead from student {ahead} on; memory of a step in MB: {memory}")
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
