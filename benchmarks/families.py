"""Compare the requested gradient error of a codec with the error of trained students of four detector families.

python benchmarks/families.py --json docs/results/families.json

Needs the teachers and students that the commands in configs/demo/ make. The codec is calibrated on generated scenes
with the probe, as in stage 1. The errors are those of each family's distilled student on other scenes.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, scenes
from benchmarks.measure import as_rival, measure
from benchmarks.sample import DrawnSample, calibrate
from benchmarks.student import Student, load_teacher, missed_share
from demo.train_teacher import classes_of
from pipeline.losses.registry import loss_named
from pipeline.mmdet_compat.registry import Config

# Students of configs/demo/. The last two learn with PKD and CWD from a cache of the universal profile.
STUDENTS = (
    "retinanet_r101_r50",
    "gfl_r101_r50",
    "fcos_r101_r50",
    "faster_rcnn_r101_r50",
    "retinanet_r101_r50_pkd",
    "retinanet_r101_r50_cwd",
)
QUALITIES = (0.01, 0.03, 0.1)
COLUMNS = ["student", "score_channels", "loss", "missed", "asked", "probe", "found", "found_over_asked", "kb_view"]


def rows_of(name: str, qualities: list[float], count: int) -> list[dict[str, Any]]:
    """Return the rows of one student, one for each quality and loss."""
    path = f"configs/demo/{name}.py"
    cfg, (teacher, _) = Config.fromfile(path), load_teacher(path)
    student = Student(cfg, Path(cfg.work_dir) / "epoch_8.pth", teacher)
    draw = partial(scenes.scene, size="288x192", categories=classes_of(cfg))
    sample = DrawnSample(teacher, partial(draw, split="train"), 48, 12)
    views = [draw(n) for n in range(count)]
    shares = {loss: missed_share(loss, teacher, student, views) for loss in (student.loss, "score")}
    profile = cfg.cache.get("codec", {}).get("profile", "frs")
    rows = []
    for quality in qualities:
        codec = calibrate(sample, quality, profile)
        found = measure({"frs": as_rival(codec)}, teacher, student, views, {"feature": 1.0, "score": 1.0})["frs"]
        for loss, share in shares.items():
            error = found[f"err_{loss_named(loss).compares}s"]
            rows.append(
                {
                    "student": name,
                    "score_channels": codec.score_channels,
                    "loss": loss,
                    "missed": share,
                    "asked": quality,
                    "probe": codec.settings["probe_error"][loss],
                    "found": error,
                    "found_over_asked": error / quality,
                    "kb_view": found["kb_view"],
                    "views": count,
                }
            )
    return rows


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=STUDENTS)
    parser.add_argument("--qualities", nargs="+", type=float, default=list(QUALITIES))
    parser.add_argument("--views", type=int, default=16)
    args = parser.parse_args()
    common.quiet()
    rows: list[dict[str, Any]] = []
    for name in args.students:
        rows += rows_of(name, args.qualities, args.views)
        common.write(args.json, rows)
    print(common.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
