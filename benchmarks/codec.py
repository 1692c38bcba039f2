"""Compare the requested, the stated and the found gradient error of a codec, for any teacher, student and data.

python benchmarks/codec.py --config C --student CHECKPOINT --teacher CONFIG CHECKPOINT \
    --options data_root=DATA --json docs/results/codec_found.json

The codec is calibrated as stage 1 does it, on the config's train images. "Stated" is what codec.json says afterwards.
"Found" is the error in the gradient of the student's parameters, on images of the val set. No calibration uses these.
It is the mean over views of `Errors.relative`, as on the probe, with its standard error as "uncertainty". "Found plain"
is the same without the sizes of the filters, so it depends on how the network is written.
"Missed" is the share of the teacher's variance that the student leaves unexplained there. "Expected" is the error to
expect of a student that misses as much, by what codec.json states (`error_at`). benchmarks/found.py prints the rows as
the tables of docs/results/probe.md.
Without --teacher, the teacher is that of the config. The student's adapters are those of its checkpoint, of --adapters,
or fitted by regression on train images. --json adds its rows to those of an earlier run. --measure-at measures the same
codec on larger views as well, where a calibration would take too long.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.measure import as_rival, measure
from benchmarks.student import Student, missed_share
from benchmarks.views import draw, same_scale
from pipeline.cache.canonical import write_json
from pipeline.calibration.calibrate import load_or_calibrate_codec
from pipeline.codecs.base import Codec
from pipeline.codecs.frs.settings import QUALITIES
from pipeline.codecs.summary import error_at
from pipeline.config import load_config
from pipeline.mmdet_compat.registry import Config
from pipeline.progress import Silent
from pipeline.sections import Sections
from pipeline.stage1.job import Job, open_job

LOSSES = {"feature": "features", "score": "scores"}
COLUMNS = [
    *(
        "teacher",
        "student",
        "codec",
        "megapixels",
        "quality",
        "loss",
        "missed",
        "missed_probe",
        "requested",
        "stated",
        "expected",
        "found",
        "uncertainty",
        "found_plain",
    ),
    *("found_over_requested", "found_over_expected", "kb_view", "kb_features", "kb_scores", "kb_map", "kb_megapixel"),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the script's arguments."""
    parser.add_argument("--config", required=True, help="the student's config, with its data sets")
    parser.add_argument("--student", type=Path, nargs="+", required=True, metavar="CHECKPOINT", help="one or more")
    parser.add_argument("--adapters", type=Path, metavar="FILE", help="the student's adapters, if stored apart")
    parser.add_argument("--teacher", nargs=2, metavar=("CONFIG", "CHECKPOINT"))
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="config values")
    parser.add_argument("--scale", type=int, nargs=2, metavar=("W", "H"), help="replaces the scale of the pipeline")
    parser.add_argument(
        "--measure-at", type=int, nargs=2, action="append", metavar=("W", "H"), help="measure at this scale too"
    )
    parser.add_argument("--qualities", nargs="+", default=["balanced"])
    parser.add_argument("--codec", choices=("frs2", "frs"), default="frs2")
    parser.add_argument("--profile", default="frs")
    parser.add_argument("--calibration-views", type=int, default=96)
    parser.add_argument("--views", type=int, default=16, help="images of the val set to measure on")


def open_config(args: argparse.Namespace, quality: str | float, folder: Path) -> tuple[Config, Sections]:
    """Return the config with the sections that a calibration needs, for a cache in `folder`."""
    from pipeline.cli.command import parse_options

    cfg = Config.fromfile(args.config)
    if args.teacher:
        config, checkpoint = args.teacher
        cfg["teacher"] = {"config": config, "checkpoint": checkpoint}
    codec = {"type": args.codec, "quality": quality, "profile": args.profile}
    cache = {"calibration_views": args.calibration_views, "workers": 0}
    cfg["cache"] = {**cache, "dir": str(folder / "cache"), "codec": codec}
    cfg.setdefault("distill", {"feature_weight": 1.0, "score_weight": 1.0})
    path = folder / "config.py"
    cfg.dump(path)
    cfg, sections = load_config(str(path), parse_options(args.options))
    if args.scale:
        same_scale(cfg.train_dataloader.dataset.pipeline, tuple(args.scale))
    return cfg, sections


def calibrate(job: Job) -> tuple[Codec, dict[str, Any]]:
    """Calibrate as stage 1 does. Return the codec and the `settings` of its codec.json."""
    write_json(job.root / "plan.json", job.plan)
    codec = load_or_calibrate_codec(job)
    return codec, codec.settings


def rows_of(args: argparse.Namespace, quality: str | float) -> list[dict[str, Any]]:
    """Return a row for each student, scale and loss: requested, stated and found error, and the bytes of a view."""
    with tempfile.TemporaryDirectory() as folder:
        cfg, sections = open_config(args, quality, Path(folder))
        job = open_job(cfg, sections, print, Silent())
        codec, _ = calibrate(job)
        scales = (None, *(args.measure_at or ()))
        views = [draw(job, args.views, cfg.val_dataloader.dataset, scale) for scale in scales]
        rows = []
        for path in args.student:
            student = Student(copy.deepcopy(cfg), path, job.teacher, args.adapters, lambda: draw(job, 12))
            for drawn in views:
                rows += [{"student": path.stem, **row} for row in measure_views(codec, job, student, drawn)]
    shared = {
        "teacher": Path(sections.teacher.checkpoint or str(sections.teacher.name)).stem,
        "codec": args.codec,
        "quality": quality,
        "calibration_views": min(args.calibration_views, len(job.images)),
        "command": common.machine()["command"],
    }
    return [{**shared, **row} for row in rows]


def measure_views(codec: Codec, job: Job, student: Student, views: list[Tensor]) -> list[dict[str, Any]]:
    """Return a row for each loss, over views of one scale."""
    settings, distill = codec.settings, job.sections.distill
    weights = {"feature": distill.feature_weight, "score": distill.score_weight}
    (found,) = measure({codec.name: as_rival(codec)}, job.teacher, student, views, weights).values()
    rows = []
    for loss, plural in LOSSES.items():
        error, missed = found[f"err_{plural}"], missed_share(loss, job.teacher, student, views)
        expected = None if missed is None else error_at(settings, loss, missed)
        rows.append(
            {
                "megapixels": sum(v.shape[1] * v.shape[2] for v in views) / len(views) / 1e6,
                "channels": codec.channels,
                "score_channels": codec.score_channels,
                "views": len(views),
                "loss": loss,
                "missed": missed,
                "missed_probe": settings.get("probe_unexplained", {}).get(loss),
                "requested": codec.allowed_error,
                "stated": settings["probe_error"][loss],
                "stated_near": settings.get("near_error", {}).get(loss),
                "missed_near": settings.get("near_unexplained", {}).get(loss),
                "expected": expected,
                "found": error,
                "uncertainty": found[f"uncertainty_{plural}"],
                "found_plain": found[f"plain_{plural}"],
                "found_over_requested": error / codec.allowed_error,
                "found_over_expected": expected and error / expected,
                **{key: value for key, value in found.items() if key.startswith("kb_")},
                "steps": {key: settings[key] for key in ("feature_step", "score_step")},
            }
        )
    return rows


def main() -> None:
    parser = common.parser(__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    common.quiet()
    rows = common.rows_so_far(args.json)
    for quality in args.qualities:
        rows += rows_of(args, quality if quality in QUALITIES else float(quality))
        common.write(args.json, rows)
        print(common.table(rows, COLUMNS), flush=True)


if __name__ == "__main__":
    main()
