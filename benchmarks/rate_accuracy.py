"""Measure the mAP of students for caches of several qualities, a live teacher, and no teacher, with three seeds each.

python benchmarks/rate_accuracy.py --json docs/results/rate_accuracy.json

Uses the demo's data; `--options` change its schedule. Runs that are already in the JSON are skipped, so an interrupted
run can be resumed. For another family: --config configs/demo/gfl_r101_r50.py --teachers alone live 0.03
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

TEACHERS = ("alone", "lossless", "0.03", "0.1", "0.3", "1.0")
ALONE = ["distill.feature_weight=0", "distill.score_weight=0"]


def run(script: str, config: str, options: list[str], work: Path | None = None) -> None:
    """Run one of the two stages as a user does."""
    place = ["--work-dir", str(work)] if work else []
    common.run([script, "--config", config, *place, "--cfg-options", *options])


def make_cache(config: str, rate: str, work: Path) -> tuple[list[str], float]:
    """Make the cache of a quality if it is missing. Return its config options and its KB per view."""
    codec = ["cache.codec.type=lossless"] if rate == "lossless" else [f"cache.codec.quality={rate}"]
    options = [f"cache.dir={work / 'cache' / rate}", *codec]
    run("stage1_cache_teacher.py", config, options)
    return options, json.loads((work / "cache" / rate / "summary.json").read_text())["bytes_per_view"] / 1e3


def train_student(config: str, name: str, seed: int, options: list[str], work: Path) -> dict[str, float]:
    """Train one student, and return its accuracy."""
    folder = work / "students" / f"{name}-{seed}"
    run("stage2_distill.py", config, [*options, f"randomness.seed={seed}"], folder)
    summary = json.loads((folder / "summary.json").read_text())
    return {"mAP": summary["mAP"], "AP50": summary["AP50"]}


def average_seeds(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return one row for each value of `key`, with mean and spread of mAP over the seeds."""
    table = []
    for name in dict.fromkeys(row[key] for row in rows):
        found = [row for row in rows if row[key] == name]
        values = [row["mAP"] for row in found]
        table.append(
            {
                key: name,
                "kb_view": found[0]["kb_view"],
                "mAP": mean(values),
                "from": min(values),
                "to": max(values),
                "spread": pstdev(values),
                "AP50": mean(row["AP50"] for row in found),
                "seeds": len(found),
            }
        )
    return table


def main() -> None:
    parser = common.parser(__doc__, json_required=True)
    parser.add_argument("--config", default="configs/demo/retinanet_r101_r50.py")
    parser.add_argument("--work", type=Path, default=Path("work_dirs/rate_accuracy"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[520, 521, 522])
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), help="alone, live, lossless or a quality")
    parser.add_argument("--options", nargs="*", default=[], help="config values for every student")
    args = parser.parse_args()
    rows = common.rows_so_far(args.json)
    done = {(row["teacher"], row["seed"]) for row in rows}
    for seed in args.seeds:  # all teachers for each seed, so that an interrupted run has a complete curve
        for name in args.teachers:
            if (name, seed) in done:
                continue
            work = args.work.resolve()
            if name == "live":
                options, size = ["teacher.source=live"], 0.0
            else:  # alone: uses a cache, which is fastest, with loss weights of 0
                first = next(t for t in args.teachers if t not in ("alone", "live"))
                options, size = make_cache(args.config, first if name == "alone" else name, work)
            options += args.options + (ALONE if name == "alone" else [])
            scores = train_student(args.config, name, seed, options, work)
            rows.append({"teacher": name, "seed": seed, "kb_view": 0.0 if name == "alone" else size, **scores})
            print(common.table(rows[-1:], list(rows[-1])), flush=True)
            common.write(args.json, rows, config=args.config, options=args.options)
    table = average_seeds(rows, "teacher")
    print(common.table(table, list(table[0])))


if __name__ == "__main__":
    main()
