"""Write the report: one HTML file without scripts or external resources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.cache.cache import Cache
from pipeline.cache.completeness import describe_passes, find_missing_passes
from pipeline.cache.inspect import describe
from pipeline.cache.schema import GATE, read_fields
from pipeline.cache.shard_plan import mix
from pipeline.codecs.base import Codec
from pipeline.codecs.group import open_codec
from pipeline.codecs.summary import promise
from pipeline.errors import CacheError
from pipeline.progress import Log, ignore
from pipeline.records import SampleRef
from pipeline.storage.files import atomic_file
from pipeline.tools.report.bits import count_bits
from pipeline.tools.report.draw import draw_charts
from pipeline.tools.report.pictures import legend_colours
from pipeline.tools.report.rates import estimate_coarser, measure_rates
from pipeline.tools.report.sample import DecodedSample, SampledView
from pipeline.tools.report.sections import draw_maps, find_worst_views, list_shards
from pipeline.tools.report.students import find_students
from pipeline.tools.report.view_replayer import ViewReplayer


def write_page(
    root: str,
    out: Path,
    config: str | None = None,
    options: dict[str, Any] | None = None,
    students: Sequence[str] = (),
    compare: Sequence[str] = (),
    samples: int = 24,
    log: Log = ignore,
) -> Path:
    """Write the page about the cache `root`. Return its path.

    config: the cache's config, which gives the images and the teacher. Without it, the page has thumbnails and no
    errors of single views. students: work dirs. compare: caches of the same teacher. samples: views to decode.
    Raise PipelineError where no pass is complete, a student or cache is missing, or the config is not the cache's.
    """
    cache = Cache(root)
    refs = _find_views(cache)
    found, codec = describe(root), open_codec(cache)
    replayer = ViewReplayer(cache, config, options or {}, log) if config else None
    sampled = sorted(refs, key=lambda ref: mix(ref.image_id, ref.view))[:samples]
    if replayer:
        log(f"teacher  running on {len(sampled)} views, to compare them with the cache")
    sample = DecodedSample(cache, codec, sampled)
    page = {
        **_describe_cache(cache, found),
        **_measure(cache, found, codec, [stored for _, stored in sample.stored], students, compare),
        "maps": draw_maps(cache, codec, refs, replayer),
        "scale": legend_colours(),
        "worst": find_worst_views(sample, replayer),
        "config": config,
        "sampled": len(sample.stored),
    }
    with atomic_file(out) as file:
        file.write(_render(page).encode("utf-8", "backslashreplace"))  # a path may have undecodable bytes
    return out


def _find_views(cache: Cache) -> list[SampleRef]:
    """Return all views of the complete passes. Raise CacheError where there is none."""
    refs = [ref for number in cache.passes() for shard in cache.references(number) for ref in shard]
    if not refs:
        raise find_missing_passes(cache) or CacheError(f"{cache.root}: all images are in quarantine")
    return refs


def _describe_cache(cache: Cache, found: dict[str, Any]) -> dict[str, Any]:
    """Return what the page says about the cache's files. found: as `describe` returns it."""
    return {
        "found": found,
        "passes": describe_passes(len(found["passes"]), found["expected_passes"]),
        "promise": promise(found["codec"]),
        "gate": read_fields(cache.root / "gate.json", GATE),
        "shards": list_shards(cache),
    }


def _measure(
    cache: Cache,
    found: dict[str, Any],
    codec: Codec,
    views: list[SampledView],
    students: Sequence[str],
    compare: Sequence[str],
) -> dict[str, Any]:
    """Return bits, rates and students, as tables and as charts. views: the stored views of the sample."""
    bits, runs, rates = count_bits(codec, views), find_students(students, cache), measure_rates(cache, compare)
    curve = estimate_coarser(codec, cache.version, rates[0], views[:8])
    return {"charts": draw_charts(cache, found, bits, rates, curve, runs), "students": runs, "rates": rates}


def _render(page: dict[str, Any]) -> str:
    """Fill the template."""
    environment = Environment(
        loader=PackageLoader("pipeline.tools.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(page)
