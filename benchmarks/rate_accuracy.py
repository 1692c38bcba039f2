"""mAP of students against KB a view: caches of several qualities, the live teacher, and no teacher, three seeds each.

python benchmarks/rate_accuracy.py --json docs/results/rate_accuracy.json

On the demo's data and schedule, about four minutes a student on two cores. Runs that are in the JSON already are not
made again, so it can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import report

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/demo/retinanet_r101_r50.py"
TEACHERS = ("alone", "live", "0.3", "0.1", "0.03", "0.01", "lossless")
FEEDS = "0.3"  # the cache that brings the one without a teacher its images
ALONE = ["distill.feature_weight=0", "distill.score_weight=0"]


def run(script: str, options: list[str], work: Path | None = None) -> None:
    """One of the two commands, as a user gives it; its output goes to a log."""
    command = [sys.executable, script, "--config", CONFIG, *(["--work-dir", str(work)] if work else [])]
    subprocess.run([*command, "--cfg-options", *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def cached(rate: str, work: Path) -> tuple[list[str], float]:
    """The options that name this rate's cache, made if it is missing, and its KB a view."""
    codec = ["cache.codec.type=lossless"] if rate == "lossless" else [f"cache.codec.quality={rate}"]
    options = [f"cache.dir={work / 'cache' / rate}", *codec]
    run("stage1_cache_teacher.py", options)
    return options, json.loads((work / "cache" / rate / "summary.json").read_text())["bytes_per_view"] / 1e3


def student(name: str, seed: int, options: list[str], work: Path) -> dict[str, Any]:
    """Train one student. Returns its summary."""
    folder = work / "students" / f"{name}-{seed}"
    run("stage2_distill.py", [*options, f"randomness.seed={seed}"], folder)
    return json.loads((folder / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("work_dirs/rate_accuracy"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[520, 521, 522])
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), help="alone, live, lossless or a quality")
    parser.add_argument("--options", nargs="*", default=[], help="config values for every student")
    args = parser.parse_args()
    rows = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
    done = {(row["teacher"], row["seed"]) for row in rows}
    for seed in args.seeds:  # a whole curve for each seed, so that a run cut short still says something
        for name in args.teachers:
            if (name, seed) in done:
                continue
            work = args.work.resolve()
            if name == "live":
                options, size = ["teacher.source=live"], 0.0
            else:  # alone: fed by a cache, as that costs least, but with weights of 0
                options, size = cached(FEEDS if name == "alone" else name, work)
            options += args.options + (ALONE if name == "alone" else [])
            summary = student(name, seed, options, work)
            scores = {"mAP": summary["mAP"], "AP50": summary["AP50"]}
            rows.append({"teacher": name, "seed": seed, "kb_view": 0.0 if name == "alone" else size, **scores})
            print(report.table(rows[-1:], list(rows[-1])), flush=True)
            report.write(args.json, rows, options=args.options)
    report.write(args.json, rows, options=args.options)
    table = []
    for name in dict.fromkeys(row["teacher"] for row in rows):
        found = [row for row in rows if row["teacher"] == name]
        values = [row["mAP"] for row in found]
        table.append({"teacher": name, "kb_view": found[0]["kb_view"], "mAP": mean(values), "spread": pstdev(values),
                      "AP50": mean(row["AP50"] for row in found), "seeds": len(found)})  # fmt: skip
    print(report.table(table, list(table[0])))


if __name__ == "__main__":
    main()
