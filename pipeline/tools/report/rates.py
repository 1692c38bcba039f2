"""Bytes a view against the gradient's error: this cache, others of the same teacher, what coarser steps would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cache.arrays import encode_sample
from pipeline.cache.cache import Cache
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import stack
from pipeline.errors import StaleCache
from pipeline.records import TeacherOutput
from pipeline.tools.report.sample import SampledView

COARSER = (1.0, 1.6, 2.5, 4.0, 6.3, 10.0)


@dataclass
class Point:
    """`errors`: of the gradient on the probe, by loss; empty for a lossless cache."""

    name: str
    kilobytes: float
    errors: dict[str, float]


def measure_rate(cache: Cache) -> Point:
    """Return bytes a view and gradient errors of a cache."""
    manifests = [cache.manifest(number) for number in cache.passes()]
    size, count = sum(m["bytes"] for m in manifests), sum(m["samples"] for m in manifests)
    found = cache.codec_manifest()["settings"].get("probe_error", {})
    errors = {loss: found[loss] for loss in ("feature", "score") if loss in found}
    return Point(cache.root.name, size / max(1, count) / 1e3, errors)


def measure_rates(cache: Cache, others: Sequence[str]) -> list[Point]:
    """Return the point of this cache, then of the others. Raises StaleCache for another teacher or data set."""
    found = [measure_rate(cache)]
    for path in others:
        other = Cache(path)
        try:
            recipe = {**cache.recipe, "codec": other.recipe["codec"]}
            other.require(recipe, cache.plan["teacher_sha256"], "compare caches of one teacher")
        except StaleCache as error:
            raise StaleCache(f"{path}: cannot be compared with {cache.root}: {error}") from error
        found.append(measure_rate(other))
    return found


def estimate_coarser(codec: Codec, here: Point, views: Sequence[SampledView]) -> list[Point]:
    """Estimate this cache under coarser steps: bytes from coding the sample again; errors in proportion to the step.

    Proportion is what calibrations find from one quality to the next (docs/results/face.md).
    """
    codecs = [coarser for factor in COARSER if (coarser := codec.coarser(factor)) is not None]
    if not codecs or not here.errors:
        return []
    outputs = [_output(codec, view) for view in views]
    sizes = [sum(_bytes(coarser, output) for output in outputs) / len(views) / 1e3 for coarser in codecs]
    return [
        Point(f"steps x {factor:g}", here.kilobytes - sizes[0] + size, {k: e * factor for k, e in here.errors.items()})
        for factor, size in zip(COARSER, sizes)
    ]


def _output(codec: Codec, view: SampledView) -> TeacherOutput:
    output = codec.decode(stack([view.arrays], [view.levels]))
    return TeacherOutput(output.features, [level.clamp(0, 1) for level in output.scores], output.frs)


def _bytes(codec: Codec, output: TeacherOutput) -> int:
    (sample,), _ = codec.encode(output)
    return sum(map(len, encode_sample(codec.specs([output.levels], [sample]), sample).values()))
