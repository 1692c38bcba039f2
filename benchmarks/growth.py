"""Measure time, bytes and memory of both stages for 500 to 4,000 images.

python benchmarks/growth.py --json docs/results/growth.json

Uses the demo's detectors on generated scenes: one pass of stage 1 and one epoch of stage 2, each in its own process.
Peak memory is that reported by the system. Gate, calibration and validation have a fixed cost. The cost of an image is
therefore the difference between two runs, in CPU seconds of all processes, which other work on the machine affects
less.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common


def measure(images: int, data: Path, work: Path) -> dict[str, Any]:
    """Run both stages on this many images, and return their time, bytes and memory."""
    folder = work / str(images)
    shutil.rmtree(folder, ignore_errors=True)  # stage 1 would reuse an existing cache
    folder.mkdir(parents=True)
    given = {
        "data_root": data,
        "train_dataloader.dataset.indices": images,
        "cache.dir": folder / "cache",
        "cache.passes": 1,
        "train_cfg.max_epochs": 1,
        "train_cfg.val_interval": 1,
    }
    options = ["--config", common.DEMO, "--cfg-options", *(f"{key}={value}" for key, value in given.items())]
    first_s, first_cpu, first_gb = common.run(["stage1_cache_teacher.py", *options], folder / "stage1.log")
    learn = ["stage2_distill.py", "--work-dir", str(folder / "run"), *options]
    second_s, second_cpu, second_gb = common.run(learn, folder / "stage2.log")
    cache = json.loads((folder / "cache" / "summary.json").read_text())
    return {
        "images": cache["images"],
        "bytes": cache["bytes"],
        "stage1_s": first_s,
        "stage1_cpu_s": first_cpu,
        "stage1_gb": first_gb,
        "stage2_s": second_s,
        "stage2_cpu_s": second_cpu,
        "stage2_gb": second_gb,
    }


def add_differences(rows: list[dict[str, Any]]) -> None:
    """Add to every row the cost of each image in addition to the previous row."""
    for before, row in itertools.pairwise(rows):
        more = row["images"] - before["images"]
        for name, key in (
            ("stage1_ms_image", "stage1_cpu_s"),
            ("stage2_ms_image", "stage2_cpu_s"),
            ("kb_image", "bytes"),
        ):
            scale = 1e-3 if key == "bytes" else 1e3
            row[name] = (row[key] - before[key]) / more * scale


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--work", type=Path, default=Path("work_dirs/growth"))
    args = parser.parse_args()
    data = args.work.resolve() / "data"
    common.run(["demo/make_data.py", "--out", str(data), "--train", str(max(args.images))])
    rows: list[dict[str, Any]] = []
    for images in sorted(args.images):
        rows.append(measure(images, data, args.work.resolve()))
        add_differences(rows)
        print(common.table(rows[-1:], list(rows[-1])), flush=True)
        common.write(args.json, rows)


if __name__ == "__main__":
    main()
