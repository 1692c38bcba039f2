"""Measure decoding and the two losses as a share of a training step: RetinaNet R50, 720 score channels, 800x1067.

python benchmarks/decode_share.py --codec frs2 --json docs/results/decode_share_frs2.json

The parts alternate on one device, and the median of each part's times is reported. The student's weights are random,
because they do not affect the time. The teacher is that of benchmarks/codec_rivals.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, launches, scenes
from benchmarks.codec_rivals import CONFIG
from benchmarks.sample import DrawnSample, add_codec, calibrate
from benchmarks.student import load_teacher
from pipeline.codecs.packing import stack
from pipeline.losses.registry import loss_named
from pipeline.mmdet_compat.registry import MODELS, Config, build
from pipeline.records import TeacherOutput
from pipeline.teacher.model import own_device

SIZE = "800x1067"


def student_step(views: list[torch.Tensor], device: torch.device) -> Callable[[], None]:
    """Return a function that runs one training step of a plain student on these views, each with one box."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    cfg = Config.fromfile("configs/coco/retinanet_r101_r50_2x.py")
    cfg.model.backbone.init_cfg = None
    model = build(MODELS, cfg.model, "model").to(device)
    if device.type == "cpu":
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    samples = []
    for view in views:
        boxes = InstanceData(bboxes=torch.tensor([[99.0, 99.0, 399.0, 399.0]]), labels=torch.tensor([3]))
        sample = DetDataSample(metainfo={"img_shape": tuple(view.shape[1:]), "scale_factor": (1.0, 1.0)})
        sample.gt_instances, sample.ignored_instances = boxes, InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)

    def step() -> None:
        data = model.data_preprocessor({"inputs": list(views), "data_samples": samples}, True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def both_losses(target: TeacherOutput) -> Callable[[], None]:
    """Return a function that computes both losses and their gradients for the student's adapted features and logits."""
    own = [[torch.zeros_like(x).requires_grad_() for x in levels] for levels in (target.features, target.scores)]

    def run() -> None:
        losses = [loss_named(name)(target, x) for name, x in zip(("feature", "score"), own)]
        torch.autograd.grad(losses, [x for levels in own for x in levels])

    return run


def main() -> None:
    parser = common.parser(__doc__)
    add_codec(parser)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality", default="balanced")
    args = parser.parse_args()
    common.quiet()
    device = own_device()
    teacher, _ = load_teacher(CONFIG)
    # Tables and steps do not depend on the image size. Calibration on small views takes a tenth of the time.
    sample = DrawnSample(teacher, partial(scenes.scene, size="320", split="train"), 24, 8)
    codec = calibrate(sample, args.quality, kind=args.codec)
    views = [scenes.scene(n, SIZE) for n in range(args.batch_size)]
    outputs = [teacher([view]) for view in views]
    samples = [codec.read_sample(codec.encode(output)[0][0], output.levels) for output in outputs]
    encoded = stack(samples, [output.levels for output in outputs]).to(device)
    parts = {
        "student step": student_step(views, device),
        "decode": lambda: codec.decode(encoded),
        "losses": both_losses(codec.decode(encoded)),
    }
    found = {name: median(times) for name, times in common.in_turns(parts, args.rounds, device).items()}
    step = found["student step"]
    rows: list[dict[str, Any]] = [
        {"part": name, "ms": value * 1e3, "share": value / step, **launches.counts(parts[name], device)}
        for name, value in found.items()
    ]
    rows.append({"part": "decode + losses", "share": (found["decode"] + found["losses"]) / step})
    common.write(
        args.json, rows, codec=codec.name, batch_size=args.batch_size, quality=args.quality, rounds=args.rounds
    )
    print(common.table(rows, ["part", "ms", "share", "operations", "kernels", "synchronisations"]))


if __name__ == "__main__":
    main()
