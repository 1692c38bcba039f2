"""Measure bytes per view and gradient error: of this cache, of others, and an estimate for coarser steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.cache.cache import Cache
from pipeline.cache.shard_format import ShardFormat
from pipeline.cache.versions import FORMATS
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import stack
from pipeline.errors import StaleCache
from pipeline.records import TeacherOutput
from pipeline.tools.report.sample import SampledView

COARSER = (1.0, 1.6, 2.5, 4.0, 6.3, 10.0)


@dataclass
class Point:
    """A point of the rate curve. `errors`: gradient error on the probe by loss; empty for a lossless cache."""

    name: str
    kilobytes: float
    errors: dict[str, float]


def measure_rate(cache: Cache) -> Point:
    """Read kB per view and the gradient errors of a cache."""
    manifests = [cache.manifest(number) for number in cache.passes()]
    size, count = sum(m["bytes"] for m in manifests), sum(m["samples"] for m in manifests)
    found = cache.codec_manifest()["settings"].get("probe_error", {})
    errors = {loss: found[loss] for loss in ("feature", "score") if loss in found}
    return Point(cache.root.name, size / max(1, count) / 1e3, errors)


def measure_rates(cache: Cache, others: Sequence[str]) -> list[Point]:
    """Return the point of this cache, then of the others. Raise StaleCache where the teacher or data set differs."""
    found = [measure_rate(cache)]
    for path in others:
        other = Cache(path)
        try:
            recipe = {**cache.recipe, "codec": other.recipe["codec"]}
            other.require(recipe, cache.plan["teacher_sha256"], "compare caches of the same teacher and data")
        except StaleCache as error:
            raise StaleCache(f"{path}: cannot be compared with {cache.root}: {error}") from error
        found.append(measure_rate(other))
    return found


def estimate_coarser(codec: Codec, version: int, current: Point, views: Sequence[SampledView]) -> list[Point]:
    """Estimate the rate curve for coarser steps. The sample is coded again; errors are scaled with the step.

    Calibrations at several qualities found errors proportional to the step (docs/results/face.md).
    """
    codecs = [coarser for factor in COARSER if (coarser := codec.coarser(factor)) is not None]
    if not codecs or not current.errors:
        return []
    encoded = []
    for view in views:
        output = _decode(codec, view)
        encoded.append([_count_bytes(coarser, output, FORMATS[version]) for coarser in codecs])
    sizes = [sum(row) / len(views) / 1e3 for row in zip(*encoded)]
    return [
        Point(
            f"steps x {factor:g}",
            current.kilobytes - sizes[0] + size,
            {loss: error * factor for loss, error in current.errors.items()},
        )
        for factor, size in zip(COARSER, sizes)
    ]


def _decode(codec: Codec, view: SampledView) -> TeacherOutput:
    output = codec.decode(stack([view.arrays], [view.levels]))
    return replace(output, scores=[level.clamp(0, 1) for level in output.scores], grids=None)


def _count_bytes(codec: Codec, output: TeacherOutput, shard_format: ShardFormat) -> int:
    (sample,), _ = codec.encode(output)
    return sum(map(len, shard_format.encode_alone(codec, output.levels, sample).values()))
