"""Measure the mAP of students for 1, 2 and 4 cached views (two scales x flip), and with the teacher in the loop.

python benchmarks/views_accuracy.py --json docs/results/views_accuracy.json

All students use the first 1, 2 or 4 passes (cache.passes) of one cache. Runs that are already in the JSON are skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.rate_accuracy import ALONE, average_seeds, make_cache, train_student

CONFIG = "configs/demo/retinanet_r101_r50_ms.py"
QUALITY = "0.03"
OPTIONS = {
    "1": ["cache.passes=1"],
    "2": ["cache.passes=2"],
    "4": [],
    "live": ["teacher.source=live"],
    "4, alone": ALONE,
}


def main() -> None:
    parser = common.parser(__doc__, json_required=True)
    parser.add_argument("--work", type=Path, default=Path("work_dirs/views_accuracy"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[520, 521, 522])
    args = parser.parse_args()
    rows = common.rows_so_far(args.json)
    done = {(row["views"], row["seed"]) for row in rows}
    work = args.work.resolve()
    cache, size = make_cache(CONFIG, QUALITY, work)
    for seed in args.seeds:
        for views, options in OPTIONS.items():
            if (views, seed) not in done:
                scores = train_student(CONFIG, views, seed, [*cache, *options], work)
                rows.append({"views": views, "seed": seed, "kb_view": size, **scores})
                print(common.table(rows[-1:], list(rows[-1])), flush=True)
                common.write(args.json, rows, config=CONFIG)
    table = average_seeds(rows, "views")
    print(common.table(table, list(table[0])))


if __name__ == "__main__":
    main()
