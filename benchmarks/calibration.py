"""Measure how long stage 1 calibrates the codec, with the views and the config of a real run.

python benchmarks/calibration.py --config configs/benchmark/retinanet_r101_r50_gpu.py --views 256

Teacher and data are those of the config. The gate is skipped, and the result is not stored.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.launches import BusyShare
from pipeline.cache.canonical import write_json
from pipeline.calibration.calibrate import load_or_calibrate_codec
from pipeline.progress import Silent
from pipeline.stage1.job import open_job


def main() -> None:
    parser = common.parser(__doc__)
    common.add_config(parser)
    parser.add_argument("--views", type=int, default=256)
    args = parser.parse_args()
    common.quiet()
    with tempfile.TemporaryDirectory() as folder:
        given = {"cache.dir": f"{folder}/cache", "cache.calibration_views": args.views}
        cfg, sections = common.load(args, given)
        job = open_job(cfg, sections, print, Silent())
        write_json(job.root / "plan.json", job.plan)
        begun = time.perf_counter()
        with BusyShare(job.teacher.device) as busy:
            codec = load_or_calibrate_codec(job)
        took = time.perf_counter() - begun
    row = {
        "views": min(args.views, len(job.images.ids)),
        "seconds": took,
        "gpu_busy": busy.value,
        "probe_error": codec.settings["probe_error"],
    }
    print(common.table([row], ["views", "seconds", "gpu_busy"]))
    common.write(args.json, [row], config=args.config, **common.setting(cfg))


if __name__ == "__main__":
    main()
