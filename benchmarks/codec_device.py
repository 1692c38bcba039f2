"""Measure the codec on a device, with a batch at full size: time, kernels, synchronisations, memory, CPU differences.

python benchmarks/codec_device.py --teacher CONFIG CHECKPOINT --scale 1333 800 --batch-size 8

Repeat --teacher to measure several numbers of score channels. Each codec is calibrated on scenes of 320 px, because
tables and steps do not depend on the size. The batch is then encoded and decoded. Two of its views are also decoded on
the CPU, and compared.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, launches, scenes
from benchmarks.sample import LOSSY, DrawnSample, calibrate
from demo.coco_names import ALL_CATEGORIES, category_set
from demo.scenes import render
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import stack
from pipeline.records import TeacherOutput
from pipeline.sections import TeacherSection
from pipeline.teacher.heads import class_count
from pipeline.teacher.model import Teacher, own_device
from pipeline.teacher.zoo import find_teacher

COLUMNS = ["codec", "score_channels", "part", "ms", "operations", "kernels", "synchronisations", "peak_mb"]
COMPARED = 2  # views that are also decoded on the CPU


def view(index: int, scale: tuple[int, int]) -> Tensor:
    """Render a scene, stretched to exactly (W, H) = scale. Return (3, H, W) uint8."""
    sides = (int(max(scale) * 0.75), max(scale))
    image = cv2.resize(render(77, "val", index, tuple(ALL_CATEGORIES), sides=sides, portrait=False).image, scale)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def load_teacher(config: str, checkpoint: str) -> Teacher:
    """Load a teacher from two files."""
    spec = find_teacher(TeacherSection(config=config, checkpoint=checkpoint))
    return Teacher(spec, category_set(spec.cfg.model.bbox_head.num_classes), own_device())


def differences(codec: Codec, batch: Any, device: torch.device) -> dict[str, float]:
    """Return the largest difference between CPU and device, relative to the largest value of each tensor."""
    on_cpu, on_device = codec.decode(batch), codec.decode(batch.to(device)).to("cpu")
    pairs = {
        "features": (on_cpu.features, on_device.features),
        "scores": (on_cpu.scores, on_device.scores),
        "frs": (on_cpu.frs, on_device.frs),
    }
    return {
        f"{name}_cpu_difference": max(float((x - y).abs().max() / x.abs().max().clamp_min(1e-30)) for x, y in zip(a, b))
        for name, (a, b) in pairs.items()
    }


def measure(name: str, part: Any, device: torch.device, rounds: int) -> dict[str, Any]:
    """Return the row of one part, run `rounds` times after a warm-up."""
    times = common.in_turns({name: part}, rounds, device)[name]
    row: dict[str, Any] = {"part": name, "ms": median(times) * 1e3, **launches.counts(part, device), "peak_mb": None}
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        part()
        row["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return row


def rows_of(teacher: Teacher, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of encoding and decoding one teacher's batch."""
    categories = category_set(class_count(teacher.detector) or 80)
    draw = partial(scenes.scene, size=args.calibrate_at, split="train", categories=categories)
    sample = DrawnSample(teacher, draw, args.calibration_views, max(2, args.calibration_views // 4))
    codec = calibrate(sample, 0.03, kind=args.codec)
    output: TeacherOutput = teacher([view(n, tuple(args.scale)) for n in range(args.batch_size)])
    encode = partial(codec.encode, output)
    samples = [codec.read_sample(coded, output.levels) for coded in encode()[0]]
    encoded = stack(samples, [output.levels] * len(samples))
    on_device = encoded.to(teacher.device)
    rows = [
        measure("encode", encode, teacher.device, args.rounds),
        measure("decode", partial(codec.decode, on_device), teacher.device, args.rounds),
    ]
    few = stack(samples[:COMPARED], [output.levels] * len(samples[:COMPARED]))
    rows[1] |= differences(codec, few, teacher.device)
    positions = sum(h * w for h, w in output.levels)
    common = {
        "codec": codec.name,
        "score_channels": codec.score_channels,
        "batch_size": args.batch_size,
        "positions": positions,
        "tokens_a_view": sum(int((array != 0).sum()) for name, array in encoded.arrays.items() if name != "frs")
        / len(samples),
    }
    return [{**common, **row} for row in rows]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--teacher", nargs=2, action="append", required=True, metavar=("CONFIG", "CHECKPOINT"))
    parser.add_argument("--scale", type=int, nargs=2, default=(1333, 800), metavar=("W", "H"))
    parser.add_argument("--codec", choices=LOSSY, default="frs", help="codec to measure (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calibration-views", type=int, default=24)
    parser.add_argument("--calibrate-at", choices=list(scenes.SIZES), default="320")
    args = parser.parse_args()
    common.quiet()
    rows: list[dict[str, Any]] = []
    for config, checkpoint in args.teacher:
        rows += rows_of(load_teacher(config, checkpoint), args)
        common.write(args.json, rows, scale=list(args.scale))
    print(common.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
