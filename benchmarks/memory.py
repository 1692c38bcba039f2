"""Measure the peak memory of calibration and encoding at real size: RetinaNet R101, 720 score channels, batch size 8.

python benchmarks/memory.py --json docs/results/memory.json

The weights are random, because they do not affect memory. A batch repeats one view.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, scenes
from benchmarks.sample import DrawnSample
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs.fit import learn_order, learn_statistics
from pipeline.codecs.frs.settings import FrsCalibration, FrsOptions
from pipeline.codecs.frs.weighted import WeightedTransform
from pipeline.mmdet_compat.registry import MODELS, build
from pipeline.sections import TeacherSection
from pipeline.teacher.model import Teacher, own_device
from pipeline.teacher.zoo import find_teacher


def peak_gb() -> float:
    """Return the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # ru_maxrss is in KiB


def random_teacher(path: Path) -> Teacher:
    """Return mmdet's RetinaNet R101 with random weights, loaded from a file like every teacher."""
    spec = find_teacher(TeacherSection(name="retinanet_r101_fpn_2x_coco", checkpoint=str(path)))
    torch.manual_seed(0)
    spec.cfg.model.backbone.init_cfg = None
    model = build(MODELS, spec.cfg.model, "teacher")
    model.init_weights()
    torch.save({"state_dict": model.state_dict()}, path)
    return Teacher(spec, tuple(scenes.ALL_CATEGORIES), own_device())


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", choices=list(scenes.SIZES), default="800x1067")
    args = parser.parse_args()
    common.quiet()

    with tempfile.TemporaryDirectory() as folder:
        teacher = random_teacher(Path(folder) / "random.pth")
    rows = [{"step": "teacher loaded", "peak_gb": peak_gb()}]
    views = [scenes.scene(0, args.size)] * args.batch_size
    options = FrsOptions()
    transform = WeightedTransform(99, options.profile, {})
    sample = DrawnSample(teacher, lambda _: views[0], 1, 1)
    for what in ("feature", "score"):
        for output, measure in sample.probes("choosing", [what]):
            measure(output)
            rows.append({"step": f"one view on the probe, {what} loss", "peak_gb": peak_gb()})
            del measure, output
    del sample
    learned = learn_statistics(transform, options.kinds, teacher(views).each())
    transform = transform.with_tables(learned.tables)
    rows.append({"step": "statistics of a batch", "peak_gb": peak_gb()})
    steps = {what: 0.03 * scale for what, scale in learned.scales.items()}
    tables = learned.tables | learn_order(transform, options.kinds, teacher(views).each())
    rows.append({"step": "order of symbols", "peak_gb": peak_gb()})
    codec = Frs(options, FrsCalibration(99, *learned.channels, steps["feature"], steps["score"]), tables)
    samples, _ = codec.encode(teacher(views))
    rows.append({"step": f"a batch of {len(samples)} encoded", "peak_gb": peak_gb()})
    print(common.table(rows, ["step", "peak_gb"]))
    common.write(args.json, rows, score_channels=codec.score_channels, size=args.size)


if __name__ == "__main__":
    main()
