"""One page about a cache that one would show a colleague: a single HTML file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import read_json
from pipeline.cache.inspect import describe
from pipeline.cache.shard_plan import mix
from pipeline.codecs.base import Codec
from pipeline.codecs.group import load_codec
from pipeline.codecs.summary import promise
from pipeline.errors import CacheError
from pipeline.records import SampleRef
from pipeline.tools.report.bits import bits
from pipeline.tools.report.draw import charts_of
from pipeline.tools.report.pictures import background, data_uri, over, scale
from pipeline.tools.report.rates import estimated, points
from pipeline.tools.report.sample import DecodedSample
from pipeline.tools.report.students import find_students
from pipeline.tools.report.view_replayer import ViewReplayer

SHOWN, WORST = 2, 6  # images whose maps are drawn, and views with the largest error


def write_page(
    root: str, out: Path, config: str | None = None, options: dict[str, Any] | None = None,
    students: Sequence[str] = (), compare: Sequence[str] = (), samples: int = 24,
) -> Path:  # fmt: skip
    """Write the page about the cache `root`. `config` brings the images and the teacher; without it the page has
    thumbnails and no errors of single views. `students`: work dirs; `compare`: caches of the same teacher.

    Raises PipelineError: no whole pass, students or caches that are not there, a config that is not the cache's.
    """
    cache = Cache(root)
    refs = [ref for number in cache.passes() for shard in cache.references(number) for ref in shard]
    if not refs:
        raise CacheError(f"{cache.root}: no complete pass to report on; run stage 1 again")
    found, codec = describe(root), load_codec(cache.root, cache.codec_manifest())
    replayer = ViewReplayer(cache, config, options or {}) if config else None
    chosen = sorted(refs, key=lambda ref: mix(ref.image_id, ref.view))[:samples]
    sample = DecodedSample(cache, codec, chosen)
    views = [stored for _, stored in sample.stored]
    spent, runs, rates = bits(codec, views), find_students(students, found["content"]), points(cache, compare)
    curve = estimated(codec, rates[0], views[:8])
    page = {
        "found": found, "promise": promise(found["codec"]), "gate": read_json(cache.root / "gate.json"),
        "charts": charts_of(cache, found, spent, rates, curve, runs), "maps": maps(cache, codec, refs, replayer),
        "scale": scale(), "worst": worst(sample, replayer), "shards": shards(cache), "students": runs, "rates": rates,
        "config": config, "sampled": len(chosen),
    }  # fmt: skip
    environment = Environment(
        loader=PackageLoader("pipeline.tools.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(environment.get_template("page.html").render(page), encoding="utf-8")
    return out


def maps(cache: Cache, codec: Codec, refs: Sequence[SampleRef], replayer: ViewReplayer | None) -> list[dict[str, Any]]:
    """FRS maps of some images in up to two views each, level by level."""
    views: dict[int, dict[int, SampleRef]] = {}
    for ref in refs:
        views.setdefault(ref.image_id, {}).setdefault(ref.view, ref)
    most = max(len(held) for held in views.values())
    whole = [image for image, held in views.items() if len(held) == most]
    rows = []
    for image in sorted(whole, key=lambda image: mix(image, 3))[:SHOWN]:
        sample = DecodedSample(cache, codec, [views[image][view] for view in sorted(views[image])][:2])
        for record, stored in sample.stored:
            base = background(record, replayer.pixels(record) if replayer else None)
            pictures = [over(base, level[0].numpy(), record) for level in sample.output(stored).frs]
            rows.append({"record": record, "image": data_uri(base), "levels": [data_uri(p) for p in pictures],
                         "peaks": [float(level.max()) for level in sample.output(stored).frs]})  # fmt: skip
    return rows


def worst(sample: DecodedSample, replayer: ViewReplayer | None) -> list[dict[str, Any]]:
    """Of the sample, the views that the cache tells most wrongly; needs the teacher."""
    if replayer is None:
        return []
    rows: list[dict[str, Any]] = []
    for record, stored in sample.stored:
        output = sample.output(stored)
        error = replayer.measure_error(record, output)
        rows.append({"record": record, "features": error.features, "scores": error.scores,
                     "kilobytes": sum(stored.sizes.values()) / 1e3, "output": output})  # fmt: skip
    rows.sort(key=lambda row: -max(row["features"], row["scores"] or 0.0))
    for row in rows[:WORST]:
        base = background(row["record"], replayer.pixels(row["record"]))
        row["image"], row["map"] = data_uri(base), data_uri(over(base, row["output"].frs[0][0].numpy(), row["record"]))
    return rows[:WORST]


def shards(cache: Cache) -> list[dict[str, Any]]:
    """Every shard, the one that lost most first."""
    rows = []
    for number in cache.passes():
        for refs in cache.references(number):
            if refs:
                sidecar = cache.shard(number, refs[0].shard).sidecar
                rows.append({"name": f"pass-{number}/{sidecar.shard}", "views": len(refs), "bytes": sidecar.size,
                             "measured": sidecar.measured, "sha256": sidecar.sha256})  # fmt: skip
    return sorted(rows, key=lambda row: -max(row["measured"].values(), default=0.0))
