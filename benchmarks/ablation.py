"""Measure single parts of the codec: other grids for the FRS map, and planes instead of tokens.

python benchmarks/ablation.py --json docs/results/ablation.json

Teacher and student are those of benchmarks/codec_rivals.py. The error of a map is the gradient error when only the
map is decoded and everything else is exact. Planes and tokens contain the same symbols, so only their bytes differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numcodecs import Blosc
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, scenes
from benchmarks.codec_rivals import CONFIG, STUDENT, VIEWS
from benchmarks.sample import DrawnSample, calibrate
from benchmarks.student import Student, load_teacher
from pipeline.cache.version2 import encode_sample
from pipeline.calibration.gradient import Errors, StudentPass
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.map_codes import difference, octaves
from pipeline.codecs.frs.map_values import EMPTY
from pipeline.codecs.frs.tokens import zigzag
from pipeline.codecs.frs.weighted import per_level
from pipeline.codecs.settings import KINDS
from pipeline.mmdet_compat.registry import Config
from pipeline.records import TeacherOutput
from pipeline.teacher.model import Teacher

Coded = tuple[int, list[Tensor]]  # bytes, and the decoded map [(H_l, W_l)]
OCTAVE = 16  # codes per octave of the logarithmic grids
ZSTD = Blosc("zstd", 8, Blosc.SHUFFLE)


def log_grid(relative: bool, maps: list[Tensor]) -> Coded:
    """Code m = 2^-s 2^-((255 - c) / 16), c = 1..255, and 0 as 0. s is the level's octave, or 0 for all levels."""
    rows, decoded = [], []
    for m in maps:
        s = int(octaves(m.max())) if relative else 0
        scale = 2.0 ** -(0 if s == EMPTY else s)
        code = torch.round(255 + OCTAVE * torch.log2(m.clamp_min(1e-38) / scale)).clamp(0, 255)
        rows.append(difference(code.to(torch.uint8)[None]).flatten())
        decoded.append(torch.where(code > 0, scale * 2 ** ((code - 255) / OCTAVE), 0.0))
    return len(ZSTD.encode(torch.cat(rows).numpy())), decoded


def fourth_root(top: int, maps: list[Tensor]) -> Coded:
    """Code the maps as the frs codec does."""
    coded = BatchMaps.encode([m[None] for m in maps], top)
    return len(ZSTD.encode(coded.to_bytes()[0].numpy())), [m[0] for m in coded.floats]


GRIDS: dict[str, Callable[[list[Tensor]], Coded]] = {
    "log2 to 2^-16, absolute": partial(log_grid, False),
    "log2 to 2^-16, relative to the level": partial(log_grid, True),
    **{f"fourth root, {top} codes, relative": partial(fourth_root, top) for top in (255, 128, 64, 32)},
}


def map_rows(teacher: Teacher, student: Student, views: list[Tensor], size: str) -> list[dict[str, Any]]:
    """Return a row for every grid: bytes and gradient errors."""
    errors: dict[str, list[Errors]] = {name: [] for name in GRIDS}
    kb = dict.fromkeys(GRIDS, 0.0)
    for view in views:
        exact = teacher([view])
        student_pass = StudentPass(student(view), student.parameters(), exact)
        for name, encode in GRIDS.items():
            used, maps = encode([m[0].cpu() for m in exact.frs])
            kb[name] += used / 1e3 / len(views)
            errors[name].append(student_pass.errors(replace(exact, frs=[m[None].to(teacher.device) for m in maps])))
    means = {name: Errors.mean(rows).relative for name, rows in errors.items()}
    return [
        {
            "part": "map",
            "size": size,
            "variant": name,
            "kb": kb[name],
            "err_features": error["feature"],
            "err_scores": error["score"],
            "views": len(views),
        }
        for name, error in means.items()
    ]


def plane_bytes(codec: Frs, output: TeacherOutput, what: str) -> int:
    """Return the bytes of the same symbols as zigzag uint16 planes, compressed with the same zstd."""
    maps = codec.transform.code_maps(output)
    exact, _ = codec.transform.coefficients(output, maps, what)
    sizes = per_level(codec.transform.step_sizes(what, maps, codec.calibration.step(what)))
    symbols = [torch.round(c / d)[0].flatten(1) for c, d in zip(exact, sizes)]
    return len(ZSTD.encode(zigzag(torch.cat(symbols, dim=1).to(torch.int32)).cpu().numpy().astype(np.uint16)))


def token_rows(codec: Frs, teacher: Teacher, views: list[Tensor], size: str) -> list[dict[str, Any]]:
    """Return rows with the bytes of planes and of tokens, for features and scores."""
    kb = {(variant, what): 0.0 for what in KINDS for variant in ("planes", "tokens")}
    for view in views:
        output = teacher([view])
        (sample,), _ = codec.encode(output)
        chunks = encode_sample(codec.items(), sample)
        for what in KINDS:
            kb["planes", what] += plane_bytes(codec, output, what) / 1e3 / len(views)
            kb["tokens", what] += len(chunks[f"{what}s"]) / 1e3 / len(views)
    return [
        {"part": f"{what}s", "size": size, "variant": variant, "kb": used, "views": len(views)}
        for (variant, what), used in kb.items()
    ]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(VIEWS), default=list(VIEWS))
    args = parser.parse_args()
    common.quiet()
    teacher, _ = load_teacher(CONFIG)
    student = Student(Config.fromfile(CONFIG), STUDENT, teacher)
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        *calibrating, count = VIEWS[size]
        views = [scenes.scene(n, size) for n in range(count)]
        rows += map_rows(teacher, student, views, size)
        codec = calibrate(DrawnSample(teacher, partial(scenes.scene, size=size, split="train"), *calibrating), 0.03)
        assert isinstance(codec, Frs)
        rows += token_rows(codec, teacher, views, size)
        common.write(args.json, rows)
    print(common.table(rows, ["part", "size", "variant", "kb", "err_features", "err_scores"]))


if __name__ == "__main__":
    main()
