"""Measure a codec: bytes, milliseconds, and the gradient errors of a trained student."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import isnan
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks import rivals
from benchmarks.student import Student
from pipeline.cache.items import decode_item
from pipeline.cache.version2 import encode_sample
from pipeline.calibration.gradient import Errors, StudentPass
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import Sample, positions, stack
from pipeline.records import LevelShapes, TeacherOutput
from pipeline.teacher.model import Teacher


def as_rival(codec: Codec) -> Callable[[TeacherOutput], rivals.Stored]:
    """Return a codec of this project with the interface of a rival. It uses the items that a shard contains."""

    def encode(output: TeacherOutput) -> rivals.Stored:
        (sample,), _ = codec.encode(output)
        items = encode_sample(codec.items(), sample)

        def decode() -> TeacherOutput:
            return codec.decode(stack([decode_items(codec, items, output.levels)], [output.levels]))

        return {name: len(item) for name, item in items.items()}, decode

    return encode


def decode_items(codec: Codec, items: dict[str, bytes], levels: LevelShapes) -> Sample:
    """Return the arrays of a sample from its encoded items."""
    limits, places = codec.size_limits(levels), positions(levels)
    found = {item.name: decode_item(item, items[item.name], limits[item.name], places) for item in codec.items()}
    return codec.read_sample(found, levels)


def host_ms(codec: Codec, output: TeacherOutput, repeats: int = 20) -> tuple[float, float]:
    """Return the CPU's milliseconds per view for compressing the items, and for checking and decompressing them."""
    (sample,), _ = codec.encode(output)
    items = encode_sample(codec.items(), sample)
    begun = time.perf_counter()
    for _ in range(repeats):
        encode_sample(codec.items(), sample)
    encoded = time.perf_counter()
    for _ in range(repeats):
        decode_items(codec, items, output.levels)
    return (encoded - begun) / repeats * 1e3, (time.perf_counter() - encoded) / repeats * 1e3


def measure(
    codecs: dict[str, Any], teacher: Teacher, student: Student, views: list[torch.Tensor], weights: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Return the mean bytes, milliseconds and gradient errors of every codec over the views.

    `plain`: errors without the filters' sizes (`Errors.plain`). `uncertainty`: standard error of the mean error.
    """
    weights = {student.loss: weights["feature"], "score": weights["score"]}
    sums: dict[str, dict[str, Any]] = {name: {"sizes": [], "errors": [], "encode": [], "decode": []} for name in codecs}
    for view in views:
        exact = teacher([view])
        student_pass = StudentPass(student(view), student.parameters(), exact)
        for name, encode in codecs.items():
            start = time.perf_counter()
            sizes, decode = encode(exact.to("cpu") if name in rivals.RIVALS else exact)
            middle = time.perf_counter()
            coded = decode().to(teacher.device)
            row = sums[name]
            row["decode"].append(time.perf_counter() - middle)
            row["encode"].append(middle - start)
            row["sizes"].append(sizes)
            row["errors"].append(student_pass.errors(coded, weights))
    pixels = mean([view.shape[1] * view.shape[2] for view in views])
    found = {}
    for name, row in sums.items():
        kb = {part: mean([sizes[part] for sizes in row["sizes"]]) / 1e3 for part in ("features", "scores", "frs")}
        errors = Errors.mean(row["errors"])
        found[name] = {
            "kb_view": sum(kb.values()),
            "kb_features": kb["features"],
            "kb_scores": kb["scores"],
            "kb_map": kb["frs"],
            "kb_megapixel": sum(kb.values()) / pixels * 1e6,
            "err_features": errors.relative[student.loss],
            "err_scores": errors.relative["score"],
            "err_total": errors.relative["total"],
            "uncertainty_features": _uncertainty([e.relative[student.loss] for e in row["errors"]]),
            "uncertainty_scores": _uncertainty([e.relative["score"] for e in row["errors"]]),
            "plain_features": errors.plain[student.loss],
            "plain_scores": errors.plain["score"],
            "cosine_features": errors.cosine[student.loss],
            "cosine_scores": errors.cosine["score"],
            "cosine_total": errors.cosine["total"],
            "encode_ms": mean(row["encode"]) * 1e3,
            "decode_ms": mean(row["decode"]) * 1e3,
            "views": len(views),
        }
    return found


def _uncertainty(errors: list[float]) -> float | None:
    """Return the standard error of the mean of the errors that are not NaN."""
    found = [error for error in errors if not isnan(error)]
    return stdev(found) / len(found) ** 0.5 if len(found) > 1 else None
