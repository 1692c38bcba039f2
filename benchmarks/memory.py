"""Peak memory of encoding at real size: 720 score channels, batches of 8 at 800x1067, with the benchmark's teacher.

python benchmarks/memory.py --json docs/results/memory.json
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import report, scenes
from benchmarks.codec import CONFIG
from benchmarks.sample import DrawnSample
from pipeline.codec import codec_settings, new_codec
from pipeline.codec.fit import drop_planes, learn_order, learn_statistics
from pipeline.codec.frs import Frs
from pipeline.config import load_config
from pipeline.teacher import Teacher, find_teacher, own_device


def peak_gb() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", choices=list(scenes.SIZES), default="800x1067")
    args = parser.parse_args()

    _, sections = load_config(CONFIG)
    teacher = Teacher(find_teacher(sections.teacher), tuple(scenes.ALL_CATEGORIES), own_device())
    rows = [{"step": "teacher loaded", "peak_gb": peak_gb()}]
    views = [scenes.scene(0, args.size)] * args.batch_size  # of one padded shape; memory does not ask what is on them
    codec = new_codec(codec_settings({"type": "frs"}))
    assert isinstance(codec, Frs)
    codec.settings["map_top"] = 99
    probed = DrawnSample(teacher, lambda _: views[0], 1, 1)
    for what in ("feature", "score"):
        for output, measure in probed.probes("choosing", what):
            measure(output)
            rows.append({"step": f"one view on the probe, {what} loss", "peak_gb": peak_gb()})
            del measure, output
    del probed
    learn_statistics(codec, (teacher(views) for _ in range(1)))
    rows.append({"step": "statistics of a batch", "peak_gb": peak_gb()})
    codec.settings.update(feature_step=5.0, score_step=0.05)
    learn_order(codec, (teacher(views) for _ in range(1)))
    drop_planes(codec, (teacher(views) for _ in range(1)))
    rows.append({"step": "order of symbols", "peak_gb": peak_gb()})
    samples, _ = codec.encode(teacher(views))
    rows.append({"step": f"a batch of {len(samples)} encoded", "peak_gb": peak_gb()})
    print(report.table(rows, ["step", "peak_gb"]))
    report.write(args.json, rows, score_channels=codec.score_channels, size=args.size)


if __name__ == "__main__":
    main()
