"""Compare bytes and gradient error of all codecs, with a teacher of real width and a partly trained student.

python benchmarks/codec_rivals.py --json docs/results/codec.json

Needs the weights that the commands in configs/benchmark/ make. Different scenes are used for calibration, for choosing
the codec's steps (on the probe, without a student) and for the reported errors. Photographs are only used for errors.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, rivals, scenes
from benchmarks.measure import as_rival, host_ms, measure
from benchmarks.sample import DrawnSample, calibrate
from benchmarks.student import Student, load_teacher
from pipeline.codecs.frs.settings import QUALITIES
from pipeline.mmdet_compat.registry import Config

VIEWS = {"320": (48, 16, 8), "800x1067": (12, 3, 3)}  # for calibration, for steps, for errors
CONFIG = "configs/benchmark/retinanet_r101_r50_wide.py"
STUDENT = Path("work_dirs/benchmark/student/epoch_6.pth")
COLUMNS = [
    "codec",
    "size",
    "data",
    "quality",
    "kb_view",
    "kb_features",
    "kb_scores",
    "kb_map",
    "kb_megapixel",
    "err_features",
    "err_scores",
    "err_total",
    "cosine_total",
    "encode_ms",
    "decode_ms",
]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--student", type=Path, default=STUDENT)
    parser.add_argument("--sizes", nargs="+", choices=list(VIEWS), default=list(VIEWS))
    parser.add_argument("--qualities", nargs="+", default=list(QUALITIES))
    parser.add_argument("--without-rivals", action="store_true")
    args = parser.parse_args()
    common.quiet()

    teacher, sections = load_teacher(args.config)
    student = Student(Config.fromfile(args.config), args.student, teacher)
    weights = {"feature": sections.distill.feature_weight, "score": sections.distill.score_weight}
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        *calibrating, count = VIEWS[size]
        sample = DrawnSample(teacher, partial(scenes.scene, size=size, split="train"), *calibrating)
        own = {q: calibrate(sample, q) for q in (*args.qualities, "lossless")}
        codecs: dict[str, Any] = {} if args.without_rivals else dict(rivals.RIVALS)
        codecs |= {f"{codec.name} {quality}": as_rival(codec) for quality, codec in own.items()}
        photographs = min(count, len(scenes.PHOTOGRAPHS))
        for data, make, number in (("scenes", scenes.scene, count), ("photographs", scenes.photograph, photographs)):
            views = [make(i, size) for i in range(number)]
            for name, found in measure(codecs, teacher, student, views, weights).items():
                codec = own.get(name.partition(" ")[2]) if name.startswith(("frs ", "lossless")) else None
                quality = QUALITIES[name.partition(" ")[2]] if codec and codec.name == "frs" else None
                extra = {"probe_error": codec.settings.get("probe_error")} if codec else {}
                if codec:
                    times = host_ms(codec, teacher([views[0]]))
                    extra |= dict(zip(("host_encode_ms", "host_decode_ms"), times))
                rows.append({"codec": name, "size": size, "data": data, "quality": quality, **found, **extra})
                print(common.table(rows[-1:], COLUMNS).splitlines()[1], flush=True)
            common.write(args.json, rows, weights=weights)
    print(common.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
