"""How both stages grow with the number of images: time, bytes and memory from 500 to 4,000.

python benchmarks/growth.py --json docs/results/growth.json

The demo's detectors on generated scenes; one pass of stage 1, one epoch of stage 2, each in a process of its own, peak
memory as the system counted it. What a run costs whatever its size (gate, calibration, validation) is left out by
looking at what further images add; in CPU seconds of all processes, as other work on the machine stretches the rest.
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


def measured(images: int, data: Path, work: Path) -> dict[str, Any]:
    folder = work / str(images)
    shutil.rmtree(folder, ignore_errors=True)  # a cache that is there already costs nothing to make
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


def further(rows: list[dict[str, Any]]) -> None:
    """Add to every row what each image beyond the row before cost."""
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
        rows.append(measured(images, data, args.work.resolve()))
        further(rows)
        print(common.table(rows[-1:], list(rows[-1])), flush=True)
        common.write(args.json, rows)


if __name__ == "__main__":
    main()
