"""Measure the CPU time of encoding a view of a full-width teacher, relative to a pass of that teacher.

python benchmarks/encode_share.py --config C --teacher CONFIG CHECKPOINT --options data_root=DATA \
    --scale 533 320 --measure-at 1333 800 --json docs/results/encode_share.json

The codec is calibrated as stage 1 does it, on small views, and encodes what --teacher computes for larger views. The
detector whose pass is timed (--timed) has random weights, because they do not change the time. Each part's CPU time is
the smallest of its rounds. On cores that are never idle, stage 1 reaches at most pass / (pass + encode + compress) of
the bare teacher's images a second.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.codec import calibrate, open_config
from benchmarks.views import draw
from pipeline.cache.version2 import encode_sample
from pipeline.mmdet_compat.registry import MODELS, Config, build
from pipeline.progress import Silent
from pipeline.stage1.job import open_job
from pipeline.teacher.model import Teacher
from pipeline.teacher.zoo import TeacherSpec

TIMED = "mmdet::retinanet/retinanet_r101_fpn_2x_coco.py"


class Untrained(Teacher):
    """A teacher with random weights."""

    @staticmethod
    def _load(spec: TeacherSpec, classes: tuple[str, ...]) -> Any:
        model = copy.deepcopy(spec.cfg.model)
        model.backbone.pop("init_cfg", None)
        return build(MODELS, model, "teacher")


def read_config(path: str) -> Config:
    """Read a config of mmdet (`mmdet::...`) or of a file."""
    from mmengine.hub import get_config

    return get_config(path, pretrained=False) if "::" in path else Config.fromfile(path)


def cpu_ms(part: Callable[[], Any], rounds: int) -> float:
    """Return the CPU milliseconds of the fastest call."""
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        part()
        times.append(time.process_time() - begun)
    return min(times) * 1e3


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--config", required=True, help="with the data sets")
    parser.add_argument("--teacher", nargs=2, metavar=("CONFIG", "CHECKPOINT"))
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="config values")
    parser.add_argument("--scale", type=int, nargs=2, metavar=("W", "H"), help="of the views to calibrate on")
    parser.add_argument("--measure-at", type=int, nargs=2, metavar=("W", "H"), default=(1333, 800))
    parser.add_argument("--timed", default=TIMED, metavar="CONFIG", help="config of the teacher to time")
    parser.add_argument("--codec", default="frs2")
    parser.add_argument("--quality", default="balanced")
    parser.add_argument("--calibration-views", type=int, default=24)
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.set_defaults(profile="frs")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    common.quiet()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cfg, sections = open_config(args, args.quality, Path(folder))
        job = open_job(cfg, sections, print, Silent())
        codec, settings = calibrate(job)
        spec = TeacherSpec(args.timed, read_config(args.timed), Path(folder))
        timed = Untrained(spec, job.images.classes, job.teacher.device)
        for view in draw(job, args.views, cfg.val_dataloader.dataset, args.measure_at):
            output = job.teacher([view])
            samples, _ = codec.encode(output)
            parts: dict[str, Callable[[], Any]] = {
                "pass": lambda view=view: timed([view]),  # type: ignore[misc]
                "encode": lambda output=output: codec.encode(output),  # type: ignore[misc]
                "compress": lambda sample=samples[0]: encode_sample(codec.items(), sample),  # type: ignore[misc]
            }
            row: dict[str, Any] = {"height": view.shape[1], "width": view.shape[2]}
            row["kb"] = sum(len(part) for part in encode_sample(codec.items(), samples[0]).values()) / 1e3
            row |= {f"{name}_cpu_ms": cpu_ms(part, args.rounds) for name, part in parts.items()}
            rows.append(row)
            print(common.table(rows[-1:], list(row)), flush=True)
    pass_ms, *others = (mean(row[f"{name}_cpu_ms"] for row in rows) for name in ("pass", "encode", "compress"))
    share = pass_ms / (pass_ms + sum(others))
    print(f"pass / (pass + encode + compress) {share:.3f}")
    ranks = {key: value for key, value in settings.items() if "rank" in key or "channels" in key}
    common.write(args.json, rows, threads=torch.get_num_threads(), timed=args.timed, codec=ranks, share=share)


if __name__ == "__main__":
    main()
