"""Measure what each part of the frs2 codec saves, at equal gradient error of a trained student.

python benchmarks/codec2.py --config C --student CHECKPOINT --teacher CONFIG CHECKPOINT --options data_root=DATA \
    --scale 667 400 --measure-at 1067 800 --json docs/results/codec2.json

Each codec is calibrated on train images so that the student, in place of the probe, has the requested error ("stated":
on views that chose nothing). It is then measured on val images, with the calibrated steps and finer ones. The bytes are
interpolated to the requested error, so the rows of one quality compare bytes at equal error. "unequal" names the
tensors whose errors are more than a factor 1.5 away: their bytes are those at the calibrated step. Every row has the
bytes of its tokens both with zstd and with the entropy coder; for frs, the coder is fitted to the views that choose the
steps. `read_ms` and `decode_ms` are of the codec as it is: frs with zstd, frs2 with the entropy coder. --json adds its
rows to those of an earlier run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import codec as found_errors
from benchmarks import common
from benchmarks.decode_cost import cost
from benchmarks.equal_error import Measured
from benchmarks.student import Student
from benchmarks.student_sample import StudentSample
from benchmarks.views import draw
from pipeline.calibration.gradient import StudentPass
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.progress import Silent
from pipeline.stage1.job import open_job

VARIANTS: dict[str, dict[str, Any]] = {
    "frs": {"type": "frs"},
    "levels": {"type": "frs2", "predict_scores": False},
    "scores": {"type": "frs2", "predict_levels": False},
    "levels and scores": {"type": "frs2"},
}
COLUMNS = [
    *("teacher", "megapixels", "variant", "coder", "quality", "kb_view", "kb_features", "kb_scores", "kb_map"),
    *(
        "kb_megapixel",
        "stated_features",
        "err_features",
        "stated_scores",
        "err_scores",
        "calibration_s",
        "tokens",
        "read_ms",
        "decode_ms",
        "unequal",
    ),
]


def main() -> None:
    parser = common.parser(__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    common.quiet()
    rows = common.rows_so_far(args.json)
    with tempfile.TemporaryDirectory() as folder:
        cfg, sections = found_errors.open_config(args, "balanced", Path(folder))
        job = open_job(cfg, sections, print, Silent())
        student = Student(cfg, args.student[0], job.teacher, args.adapters, lambda: draw(job, 12))
        drawn = draw(job, args.learning + args.choosing + args.reported)
        sample = StudentSample(job.teacher, student, drawn, args.choosing, args.reported)
        dataset = cfg.val_dataloader.dataset
        scales = [(width, height) for width, height in args.measure_at or ()]
        views = [draw(job, args.views, dataset, scale) for scale in scales or (None,)]
        for quality in map(float, args.qualities):
            measured, seconds = {}, {}
            for variant in args.variants:
                begun = time.process_time()
                codec = calibrate_codec(read_options({**VARIANTS[variant], "quality": quality}), sample)
                seconds[variant] = time.process_time() - begun
                measured[variant] = Measured(codec, sample)
            shared = {
                "teacher": Path(sections.teacher.checkpoint or str(sections.teacher.name)).stem,
                "student": args.student[0].stem,
                "quality": quality,
                "learning": args.learning,
                "command": common.machine()["command"],
            }
            for at in views:
                for view in at:
                    exact = job.teacher([view])
                    passed = StudentPass(student(view), student.parameters(), exact)
                    for one in measured.values():
                        one.add(exact, passed)
                pixels = sum(v.shape[1] * v.shape[2] for v in at) / len(at) / 1e6
                costs = {variant: cost(one.codec, job.teacher, at[:2]) for variant, one in measured.items()}
                for (variant, one), coder in product(measured.items(), ("zstd", "ans")):
                    place = {"megapixels": pixels, "views": len(at), "calibration_s": seconds[variant]}
                    found = {**one.row(coder, quality, pixels), **costs[variant]}
                    rows.append({**shared, "variant": variant, **place, **found})
                print(common.table(rows[-2 * len(measured) :], COLUMNS), flush=True)
                common.write(args.json, rows)
    print(common.table(rows, COLUMNS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the script's arguments, among them those that `codec.open_config` reads."""
    found_errors.add_arguments(parser)
    parser.set_defaults(views=8, qualities=[0.03, 0.1])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--learning", type=int, default=96, help="views to learn from")
    parser.add_argument("--choosing", type=int, default=8, help="views to choose the steps")
    parser.add_argument("--reported", type=int, default=4, help="views whose errors are stated")


if __name__ == "__main__":
    main()
