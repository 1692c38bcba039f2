"""A cache without the content of its shards, for the start-up benchmark: plans, manifests, and empty files."""

from __future__ import annotations

from typing import Any

from pipeline.cache.canonical import digest, write_json
from pipeline.cache.layout import pass_folder, shard_name
from pipeline.data.shard_planning import expected_passes, layout_of, plan_views
from pipeline.recipe import read_inputs
from pipeline.stage1.job import make_plan
from pipeline.storage.files import checksum

SAMPLE = 87_000  # bytes of a view on COCO
NOTHING = "0" * 64


def write_plans(cfg: Any, sections: Any) -> None:
    """Write the plan and manifest of every pass. The shards are files with holes; their manifest entries are false."""
    root = sections.cache.place()
    if (root / "codec.json").exists():
        return
    inputs = read_inputs(cfg, sections)
    plan = make_plan(sections, inputs.recipe, NOTHING)
    write_json(root / "plan.json", plan)
    for number in expected_passes(sections, inputs.views):
        shards = plan_views(inputs.images, inputs.views, number, layout_of(sections))
        folder = pass_folder(root, number)
        write_json(folder / "plan.json", {"pass": number, "shards": [shard.to_json() for shard in shards]})
        files = {"plan.json": checksum(folder / "plan.json")}
        for n, shard in enumerate(shards):
            for name, size in ((shard_name(n), SAMPLE), (shard_name(n).replace(".tar", ".json"), 40)):
                files[name] = {"bytes": size * len(shard.samples), "sha256": NOTHING}
                with open(folder / name, "wb") as file:
                    file.truncate(files[name]["bytes"])
        sums = {"samples": len(inputs.images), "bytes": SAMPLE * len(inputs.images), "bytes_by_array": {}}
        about = {"raw_fp16_bytes": 0, "measured": {}, "quarantine": [], "environment": {}}
        write_json(folder / "manifest.json", {"pass": number, "plan": digest(plan), "files": files, **sums, **about})
    settings = {"type": "lossless", "channels": 256, "score_channels": 720}
    write_json(root / "codec.json", {"files": {}, "settings": settings, "measured": {}})
