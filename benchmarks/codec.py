"""Bytes against gradient error of every codec, on a teacher of real width and a partly trained student.

python benchmarks/codec.py --json docs/results/codec.json

Needs the weights that the commands in configs/benchmark/ make. Scenes that calibrate, scenes that choose the codec's
steps (on the probe, which knows no student) and scenes that report are different; photographs are only reported on.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import report, rivals, scenes
from benchmarks.student import Student
from pipeline.cache.arrays import decode_chunk, encode_sample
from pipeline.caching.calibrate import TUNING
from pipeline.caching.probe import Probe
from pipeline.codec import codec_settings, new_codec
from pipeline.codec.base import Codec, Measure, stack
from pipeline.codec.quality import QUALITIES
from pipeline.config import load_config
from pipeline.gradient import Errors, StudentPass
from pipeline.mm import Config
from pipeline.records import TeacherOutput
from pipeline.teacher import Teacher, find_teacher, own_device

CONFIG = "configs/benchmark/retinanet_r101_r50_wide.py"
COLUMNS = ["codec", "size", "data", "quality", "kb_view", "kb_features", "kb_scores", "kb_map", "kb_megapixel",
           "err_features", "err_scores", "err_total", "cosine_total", "encode_ms", "decode_ms"]  # fmt: skip


class SceneSample:
    """What stage 1 gives a codec to calibrate on, here from generated scenes."""

    def __init__(self, teacher: Teacher, size: str, learning: int, choosing: int) -> None:
        self._teacher, self._size, self._learning, self._choosing = teacher, size, learning, choosing
        self._probes: dict[str, Probe] = {}

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        for index in self._indices(part):
            yield self._teacher([scenes.scene(index, self._size, "train")])

    def probes(self, part: str, what: str) -> Iterator[tuple[TeacherOutput, Measure]]:
        if what not in self._probes:
            some = [scenes.scene(i, self._size, "train") for i in self._indices("choosing")[:TUNING]]
            self._probes[what] = Probe(self._teacher, what, 520, some)
        for index in self._indices(part):
            yield self._probes[what].measure(scenes.scene(index, self._size, "train"))

    def _indices(self, part: str) -> range:
        first = {"learning": 0, "choosing": 1000, "reported": 2000}[part]
        return range(first, first + (self._learning if part == "learning" else self._choosing))


def calibrated(teacher: Teacher, size: str, quality: str, args: argparse.Namespace) -> Codec:
    """The project's own codec, as stage 1 would calibrate it."""
    codec = new_codec(
        codec_settings({"type": "lossless"} if quality == "lossless" else {"type": "frs", "quality": quality})
    )
    codec.calibrate(SceneSample(teacher, size, args.learning[size], args.choosing[size]))
    found = {key: value for key, value in codec.settings.items() if "rank" in key or "step" in key or "error" in key}
    print(f"calibrated {codec.name} {quality} at {size}: {found}", flush=True)
    return codec


def ours(codec: Codec) -> Callable[[TeacherOutput], rivals.Stored]:
    """A codec of this project as a row of the table: through the very chunks that a shard holds."""

    def encode(output: TeacherOutput) -> rivals.Stored:
        (sample,), _ = codec.encode(output)
        specs = codec.specs([output.levels], [sample])
        chunks = encode_sample(specs, sample)

        def decode() -> TeacherOutput:
            arrays = {spec.name: decode_chunk(spec, chunks[spec.name]) for spec in specs}
            return codec.decode(stack([arrays], [output.levels]))

        return {name: len(chunk) for name, chunk in chunks.items()}, decode

    return encode


def host_ms(codec: Codec, output: TeacherOutput, repeats: int = 20) -> tuple[float, float]:
    """Milliseconds a view that the CPU spends beside the device: compressing its chunks, checking and opening them."""
    (sample,), _ = codec.encode(output)
    specs = codec.specs([output.levels], [sample])
    chunks = encode_sample(specs, sample)
    begun = time.perf_counter()
    for _ in range(repeats):
        encode_sample(specs, sample)
    half = time.perf_counter()
    for _ in range(repeats):
        for spec in specs:
            decode_chunk(spec, chunks[spec.name])
    return (half - begun) / repeats * 1e3, (time.perf_counter() - half) / repeats * 1e3


def measure(
    codecs: dict[str, Any], teacher: Teacher, student: Student, views: list[torch.Tensor], weights: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Mean bytes, milliseconds and gradient errors of every codec over the views."""
    sums: dict[str, dict[str, Any]] = {name: {"sizes": [], "errors": [], "encode": [], "decode": []} for name in codecs}
    for view in views:
        exact = teacher([view])
        done = StudentPass(student(view), student.parameters(), exact)
        for name, encode in codecs.items():
            start = time.perf_counter()
            sizes, decode = encode(exact.to("cpu") if name in rivals.RIVALS else exact)
            middle = time.perf_counter()
            coded = decode().to(teacher.device)
            row = sums[name]
            row["decode"].append(time.perf_counter() - middle)
            row["encode"].append(middle - start)
            row["sizes"].append(sizes)
            row["errors"].append(done.errors(coded, weights))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    pixels = mean([view.shape[1] * view.shape[2] for view in views])
    found = {}
    for name, row in sums.items():
        kb = {part: mean([sizes[part] for sizes in row["sizes"]]) / 1e3 for part in ("features", "scores", "frs")}
        errors = Errors.mean(row["errors"])
        found[name] = {
            "kb_view": sum(kb.values()), "kb_features": kb["features"], "kb_scores": kb["scores"], "kb_map": kb["frs"],
            "kb_megapixel": sum(kb.values()) / pixels * 1e6,
            "err_features": errors.relative["feature"], "err_scores": errors.relative["score"],
            "err_total": errors.relative["total"], "cosine_features": errors.cosine["feature"],
            "cosine_scores": errors.cosine["score"], "cosine_total": errors.cosine["total"],
            "encode_ms": mean(row["encode"]) * 1e3, "decode_ms": mean(row["decode"]) * 1e3, "views": len(views),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--student", type=Path, default=Path("work_dirs/benchmark/student/epoch_6.pth"))
    parser.add_argument("--sizes", nargs="+", choices=list(scenes.SIZES), default=list(scenes.SIZES))
    parser.add_argument("--views", type=int, nargs=2, default=[8, 2], help="reported at 320 px and at 800x1067")
    parser.add_argument("--qualities", nargs="+", default=list(QUALITIES))
    parser.add_argument("--without-rivals", action="store_true")
    args = parser.parse_args()
    args.learning, args.choosing = {"320": 48, "800x1067": 12}, {"320": 8, "800x1067": 3}
    warnings.filterwarnings("ignore", category=UserWarning)

    _, sections = load_config(args.config)
    classes = tuple(scenes.ALL_CATEGORIES)
    teacher = Teacher(find_teacher(sections.teacher), classes, own_device())
    student = Student(Config.fromfile(args.config), args.student, teacher)
    weights = {"feature": sections.distill.feature_weight, "score": sections.distill.score_weight}
    rows: list[dict[str, Any]] = []
    for size, count in zip(scenes.SIZES, args.views):
        if size not in args.sizes:
            continue
        own = {q: calibrated(teacher, size, q, args) for q in (*args.qualities, "lossless")}
        codecs: dict[str, Any] = {} if args.without_rivals else dict(rivals.RIVALS)
        codecs |= {f"{codec.name} {quality}": ours(codec) for quality, codec in own.items()}
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
                print(report.table(rows[-1:], COLUMNS).splitlines()[1], flush=True)
            report.write(args.json, rows, weights=weights)
    print(report.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
