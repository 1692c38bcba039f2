"""Compare the entropy coder of frs2 with tokens and zstd: bytes and CPU milliseconds for the same symbols.

python benchmarks/ans.py --config C --teacher CONFIG CHECKPOINT --options data_root=DATA --json docs/results/ans.json

The frs codec is calibrated as stage 1 does it. The entropy coder is fitted to train images, and measured on images of
the val set. A sample's time is the least of several rounds, and a row has the median of all samples. `classes_ms` is
the time to read the map and to count the classes; both directions need it. --json adds its rows to those of an earlier
run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from numcodecs import Blosc, blosc
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.codec import calibrate, open_config
from benchmarks.views import draw
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs2.ans_fit import fit
from pipeline.codecs.frs2.ans_stream import decode, encode
from pipeline.codecs.frs2.classes import Histogram, class_sizes, group_histograms, key_histogram
from pipeline.codecs.frs2.strengths import read_strengths
from pipeline.codecs.packing import Sample
from pipeline.progress import Silent
from pipeline.records import LevelShapes
from pipeline.stage1.job import open_job
from pipeline.teacher.model import Teacher

Coded = list[tuple[Sample, LevelShapes]]
COLUMNS = [
    *("teacher", "megapixels", "quality", "factor", "tensor", "tokens", "kb_zstd", "kb_ans", "ratio"),
    *("classes_ms", "encode_ms", "encode_zstd_ms", "decode_ms", "decode_zstd_ms"),
]


def cpu_ms(part: Callable[[], Any], rounds: int) -> float:
    """Return the least CPU time of a call."""
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        part()
        found.append(time.process_time() - begun)
    return 1e3 * min(found)


def code(codec: Frs, teacher: Teacher, views: list[Tensor]) -> Coded:
    """Encode each view alone, with the frs codec."""
    outputs = (teacher([view]).to("cpu") for view in views)
    return [(codec.encode(output)[0][0], output.levels) for output in outputs]


def count_keys(groups: Sequence[Histogram], top: int, sample: Sample, levels: LevelShapes) -> Histogram:
    """Read the sample's map, and count the keys of its symbols."""
    return key_histogram(groups, read_strengths(sample["frs"], levels, top))


def measure(codec: Frs, what: str, fitted: Coded, coded: Coded, rounds: int) -> dict[str, Any]:
    """Fit to some samples. Return mean bytes and median times over others."""
    zstd = Blosc("zstd", codec.options.zstd_level, Blosc.SHUFFLE)
    keys = partial(count_keys, group_histograms(codec.tables[f"{what}_expected"]), codec.calibration.map_top)
    model = fit([(sample[f"{what}s"], keys(sample, levels)) for sample, levels in fitted])
    rows = []
    for sample, levels in coded:
        tokens, sizes = sample[f"{what}s"], class_sizes(keys(sample, levels), model.top)
        packed, data = zstd.encode(tokens), encode(tokens, sizes, model)
        assert np.array_equal(decode(data, sizes, model), tokens)
        parts: dict[str, Callable[[], Any]] = {
            "classes_ms": partial(keys, sample, levels),
            "encode_ms": partial(encode, tokens, sizes, model),
            "encode_zstd_ms": partial(zstd.encode, tokens),
            "decode_ms": partial(decode, data, sizes, model),
            "decode_zstd_ms": partial(zstd.decode, packed),
        }
        times = {name: cpu_ms(part, rounds) for name, part in parts.items()}
        rows.append({"tokens": len(tokens), "kb_zstd": len(packed) / 1e3, "kb_ans": len(data) / 1e3, **times})
    shown = {key: (median if key.endswith("_ms") else mean)(row[key] for row in rows) for key in rows[0]}
    return {**shown, "ratio": shown["kb_ans"] / shown["kb_zstd"]}


def rows_of(args: argparse.Namespace, quality: float) -> list[dict[str, Any]]:
    """Return a row for each tensor and each factor of the calibrated steps."""
    with tempfile.TemporaryDirectory() as folder:
        cfg, sections = open_config(args, quality, Path(folder))
        job = open_job(cfg, sections, print, Silent())
        codec, _ = calibrate(job)
        scale = tuple(args.measure_at) if args.measure_at else None
        learning, views = draw(job, args.fit, None, scale), draw(job, args.views, cfg.val_dataloader.dataset, scale)
    assert isinstance(codec, Frs)
    rows = []
    for factor in args.factors:
        used = codec.coarser(factor)
        coded, fitted = code(used, job.teacher, views), code(used, job.teacher, learning)
        for what in used.kinds:
            shared = {
                "teacher": Path(sections.teacher.checkpoint or str(sections.teacher.name)).stem,
                "megapixels": mean(v.shape[1] * v.shape[2] for v in views) / 1e6,
                "views": len(views),
                "fitted_to": len(learning),
                "quality": quality,
                "factor": factor,
                "tensor": f"{what}s",
                "step": used.calibration.step(what),
                "command": common.machine()["command"],
            }
            rows.append({**shared, **measure(used, what, fitted, coded, args.rounds)})
    return rows


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--config", required=True, help="a config with the data sets")
    parser.add_argument("--teacher", nargs=2, metavar=("CONFIG", "CHECKPOINT"))
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="config values")
    parser.add_argument("--scale", type=int, nargs=2, metavar=("W", "H"), help="replaces the scale of the pipeline")
    parser.add_argument(
        "--measure-at", type=int, nargs=2, metavar=("W", "H"), help="another scale to fit and measure at"
    )
    parser.add_argument("--qualities", type=float, nargs="+", default=[0.03, 0.10])
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0], help="multiples of the calibrated steps")
    parser.add_argument("--calibration-views", type=int, default=96)
    parser.add_argument("--fit", type=int, default=24, help="train images to fit the entropy coder to")
    parser.add_argument("--views", type=int, default=12, help="images of the val set to measure on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.set_defaults(codec="frs", profile="frs")
    args = parser.parse_args()
    common.quiet()
    torch.set_num_threads(1)
    blosc.set_nthreads(1)
    rows = common.rows_so_far(args.json)
    for quality in args.qualities:
        rows += rows_of(args, quality)
        common.write(args.json, rows)
        print(common.table(rows, COLUMNS), flush=True)


if __name__ == "__main__":
    main()
