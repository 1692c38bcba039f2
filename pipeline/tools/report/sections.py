"""Make the rows of the page's sections: maps over images, views with the largest error, shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.shard_plan import mix
from pipeline.codecs.base import Codec
from pipeline.records import SampleRef
from pipeline.tools.report.pictures import blend_map, data_uri, render_background, shrink
from pipeline.tools.report.sample import DecodedSample
from pipeline.tools.report.view_replayer import ViewReplayer

SHOWN, WORST = 2, 6  # number of images with maps, and of views with the largest error


def draw_maps(
    cache: Cache, codec: Codec, refs: Sequence[SampleRef], replayer: ViewReplayer | None
) -> list[dict[str, Any]]:
    """Draw the FRS maps of some images in up to two views each, level by level."""
    views: dict[int, dict[int, SampleRef]] = {}
    for ref in refs:
        views.setdefault(ref.image_id, {}).setdefault(ref.view, ref)
    most = max(len(by_view) for by_view in views.values())
    complete = [image for image, by_view in views.items() if len(by_view) == most]
    rows = []
    for image in sorted(complete, key=lambda image: mix(image, 3))[:SHOWN]:
        sample = DecodedSample(cache, codec, [views[image][view] for view in sorted(views[image])][:2])
        for record, stored in sample.stored:
            shown = record if replayer else shrink(record)
            base = render_background(shown, replayer.pixels(record) if replayer else None)
            maps = sample.output(stored).frs
            pictures = [blend_map(base, level[0].numpy(), shown) for level in maps]
            rows.append(
                {
                    "record": record,
                    "image": data_uri(base),
                    "levels": [data_uri(p) for p in pictures],
                    "peaks": [float(level.max()) for level in maps],
                }
            )
    return rows


def find_worst_views(sample: DecodedSample, replayer: ViewReplayer | None) -> list[dict[str, Any]]:
    """Return the views of the sample with the largest error; empty without the teacher."""
    if replayer is None:
        return []
    rows: list[dict[str, Any]] = []
    for record, stored in sample.stored:
        output = sample.output(stored)
        error = replayer.measure_error(record, output)
        rows.append(
            {
                "record": record,
                "features": error.features,
                "scores": error.scores,
                "kilobytes": sum(stored.sizes.values()) / 1e3,
                "frs": output.frs[0][0].numpy(),
            }
        )
    rows.sort(key=lambda row: -max(row["features"], row["scores"] or 0.0))
    for row in rows[:WORST]:
        base = render_background(row["record"], replayer.pixels(row["record"]))
        heat = blend_map(base, row["frs"], row["record"])
        row["image"], row["map"] = data_uri(base), data_uri(heat)
    return rows[:WORST]


def list_shards(cache: Cache) -> list[dict[str, Any]]:
    """List every shard, sorted by decreasing error."""
    rows = []
    for number in cache.passes():
        for refs in cache.references(number):
            if refs:
                sidecar = cache.shard(number, refs[0].shard).sidecar
                rows.append(
                    {
                        "name": f"pass-{number}/{sidecar.shard}",
                        "views": len(refs),
                        "bytes": sidecar.size,
                        "measured": sidecar.measured,
                        "sha256": sidecar.sha256,
                    }
                )
    return sorted(rows, key=lambda row: -max(row["measured"].values(), default=0.0))
