"""Measure the start of both stages on an annotation file of COCO's size, beside mmdet's own data set.

python benchmarks/startup.py --json docs/results/startup.json

Each row is a process of its own, with its wall and CPU seconds from the loaded config to the first view, and the peak
of its resident memory (VmHWM), which includes 0.5 GB of imports. The annotation file is made first: 118,287 images and
0.83 million annotations with polygons, 440 MB. With --before DIR, an older copy of this project is measured too.

Neither stage loads a detector. Stage 2 opens a cache whose plans and manifests are those of the data set; its shards
are not read.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from multiprocessing import context, popen_forkserver
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

sys.path.insert(0, os.environ.get("STARTUP_PROJECT", str(Path(__file__).resolve().parents[1])))

CONFIG, DRAWN = "configs/coco/retinanet_r101_r50_2x.py", "configs/coco/gfl_r101_r50_ms2x.py"
RANKS = 2  # that start together
SIZED = 8000  # images whose drawn views are sized


def given(data: Path, cache: Path) -> dict[str, Any]:
    """Return the options that point a COCO config at the data."""
    dataset = {"data_root": str(data), "ann_file": "annotations.json", "data_prefix.img": "images/"}
    return {"cache.dir": str(cache), **{f"train_dataloader.dataset.{key}": value for key, value in dataset.items()}}


def load(data: Path, cache: Path, config: str = CONFIG, masks: bool = False) -> tuple[Any, Any]:
    from pipeline.config import load_config

    cfg, sections = load_config(config, given(data, cache))
    if masks:
        cfg.train_dataloader.dataset.pipeline[1]["with_mask"] = True
    return cfg, sections


def start_mmdet(data: Path, cache: Path, masks: bool) -> dict[str, Any]:
    """Build mmdet's own data set and load its first view."""
    from pipeline.mmdet_compat.registry import DATASETS

    cfg, _ = load(data, cache, masks=masks)
    with timed() as found:
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        found["images"] = len(dataset)
        assert dataset[0]["inputs"].ndim == 3
    return found


def start_stage1(data: Path, cache: Path, masks: bool) -> dict[str, Any]:
    """Read the inputs, plan a pass, and load the first view of it."""
    from pipeline.data.shard_planning import layout_of, plan_views
    from pipeline.recipe import read_inputs
    from pipeline.stage1.loader import ViewLoader

    cfg, sections = load(data, cache, masks=masks)
    with timed() as found:
        inputs = read_inputs(cfg, sections)
        found["images"] = len(inputs.images)
        shards = plan_views(inputs.images, inputs.views, 0, layout_of(sections))
        pad, views = shards[0].batches[0]
        batches = ViewLoader(inputs.images, inputs.views, [(None, (pad, views[:1]))], 0).batches()
        assert len(next(iter(batches))[1].views) == 1
    return found


def start_stage2(data: Path, cache: Path, masks: bool) -> dict[str, Any]:
    """Read the inputs and the plans of two passes, schedule an epoch, and load the first view. Count what is sent."""
    from pipeline.data.shard_planning import expected_passes
    from pipeline.data.stream import Stream, StreamSource
    from pipeline.recipe import open_cache, read_inputs
    from pipeline.stage2.teacher_data import read_passes

    cfg, sections = load(data, cache, masks=masks)
    with timed() as found:
        inputs = read_inputs(cfg, sections)
        found["images"] = len(inputs.images)
        opened = open_cache(sections.cache.place(), inputs)
        passes = read_passes(opened, expected_passes(sections, inputs.views), inputs.images)
        stream = Stream(StreamSource(passes, inputs.images, inputs.views, opened, None, "exact", 0.0, {}), 16, 0)
        del passes
        ref = stream.batches()[0][0]
        inputs.views.replay(inputs.images.info(ref.image_id), ref.view)
    found["worker_mb"] = sent_bytes(stream) / 1e6
    return found


def sizes(data: Path, cache: Path, masks: bool) -> dict[str, Any]:
    """Plan the drawn views of some images. The seconds of all are extrapolated."""
    from pipeline.data.shard_planning import images_and_views, layout_of, plan_views

    cfg, sections = load(data, cache, DRAWN)
    images, views = images_and_views(cfg, sections)
    with timed() as found:
        plan_views(images, views, 0, layout_of(sections), images.ids[:SIZED])
    found["images"] = min(SIZED, len(images))
    return found


STARTS = {"mmdet": start_mmdet, "stage 1": start_stage1, "stage 2": start_stage2, "sizes of a pass": sizes}


class timed:
    """Measure wall and CPU seconds of a block, and then the peak resident GB of this process."""

    def __enter__(self) -> dict[str, Any]:
        self._found: dict[str, Any] = {}
        self._begun = time.perf_counter(), time.process_time()
        return self._found

    def __exit__(self, *error: object) -> None:
        ends = time.perf_counter(), time.process_time()
        self._found |= {"seconds": ends[0] - self._begun[0], "cpu_seconds": ends[1] - self._begun[1]}
        status = Path("/proc/self/status").read_text()
        for key, name in (("VmHWM", "peak_gb"), ("VmRSS", "resident_gb")):
            self._found[name] = int(re.findall(rf"{key}:\s+(\d+)", status)[0]) * 1024 / 1e9


def sent_bytes(stream: Any) -> int:
    """Return the bytes that a loader worker of a remote cache receives when it is started by the fork server."""
    starting: Any = popen_forkserver.Popen.__new__(popen_forkserver.Popen)
    starting._fds = []
    context.set_spawning_popen(starting)
    try:
        return len(ForkingPickler.dumps(stream))
    finally:
        context.set_spawning_popen(None)


def measure(what: str, data: Path, cache: Path, masks: bool, project: Path, answer: Any = None) -> dict[str, Any]:
    """Measure one start in a new process of a copy of the project."""
    command = [sys.executable, __file__, "--measure", what, "--data", str(data), "--cache", str(cache)]
    environment = {**os.environ, "STARTUP_PROJECT": str(project), "PYTHONPATH": str(project)}
    result = subprocess.run(
        command + ["--masks"] * masks, env=environment, cwd=project, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(result.stdout.splitlines()[-1])
    if answer is not None:
        answer.send(found)
    return found


def start_ranks(what: str, data: Path, cache: Path, project: Path) -> list[dict[str, Any]]:
    """Measure ranks that start together."""
    pipes = [multiprocessing.Pipe() for _ in range(RANKS)]
    for _, end in pipes:
        multiprocessing.Process(target=measure, args=(what, data, cache, False, project, end)).start()
    return [own.recv() for own, _ in pipes]


def write_cache(data: Path, cache: Path) -> None:
    """Write a cache of the config without the content of its shards."""
    from benchmarks.startup_cache import write_plans

    cfg, sections = load(data, cache)
    write_plans(cfg, sections)


def forget(cache: Path) -> None:
    """Delete what an earlier start kept of the annotation file."""
    for file in cache.with_name(f"{cache.name}.images").glob("*.*"):
        file.unlink()


def rows_of(
    project: Path, label: str, data: Path, cache: Path, masks: bool, starts: tuple[str, ...] = ("first", "second")
) -> list[dict[str, Any]]:
    """Measure the starts of both stages with one copy of the project. The cache is one without masks."""
    rows = []
    for what in ("stage 1", "stage 2")[: 1 if masks else 2]:
        forget(cache)
        for start in starts:
            rows.append({"project": label, "what": what, "start": start, "masks": masks})
            rows[-1] |= measure(what, data, cache, masks, project)
            print(rows[-1], flush=True)
    return rows


def compare(rows: list[dict[str, Any]]) -> None:
    """Add to each row its ratios to mmdet's own data set with or without masks."""
    base = {row["masks"]: row for row in rows if row["what"] == "mmdet"}
    for row in rows:
        own = base.get(row["masks"])
        if own is not None and row["what"] in ("stage 1", "stage 2"):
            row["cpu_seconds_over_mmdet"] = row["cpu_seconds"] / own["cpu_seconds"]
            row["peak_over_mmdet"] = row["peak_gb"] / own["peak_gb"]


def main() -> None:
    from benchmarks import common
    from benchmarks.startup_data import IMAGES, write_data

    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--work", type=Path, default=Path("work_dirs/startup"))
    parser.add_argument("--before", type=Path, metavar="DIR", help="an older copy of this project")
    args = parser.parse_args()
    here, work = Path(__file__).resolve().parents[1], args.work.resolve()
    path = write_data(work / str(args.images), args.images)
    data, cache = path.parent, path.parent / "cache"
    write_cache(data, cache)
    rows: list[dict[str, Any]] = []
    for masks in (False, True):
        rows.append({"project": "mmdet", "what": "mmdet", "masks": masks})
        rows[-1] |= measure("mmdet", data, cache, masks, here)
        if args.before is not None and not masks:
            rows += rows_of(args.before.resolve(), "before", data, cache, masks, ("every",))
        rows += rows_of(here, "now", data, cache, masks)
    forget(cache)
    for rank, found in enumerate(start_ranks("stage 1", data, cache, here)):
        rows.append({"project": "now", "what": "stage 1", "start": f"rank {rank} of {RANKS}", "masks": False, **found})
    for label, project in (("before", args.before), ("now", here)):
        if project is not None:
            rows.append({"project": label, "what": "sizes of a pass", "masks": False})
            rows[-1] |= measure("sizes of a pass", data, cache, False, project.resolve())
    compare(rows)
    columns = ["project", "what", "start", "masks", "images", "seconds", "cpu_seconds", "peak_gb", "resident_gb"]
    print(common.table(rows, [*columns, "worker_mb", "cpu_seconds_over_mmdet", "peak_over_mmdet"]))
    common.write(args.json, rows, annotation_mb=path.stat().st_size / 1e6)


def measure_here() -> None:
    """Measure one start in this process, and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--masks", action="store_true")
    args = parser.parse_args()
    print(json.dumps(STARTS[args.measure](args.data, args.cache, args.masks)))


if __name__ == "__main__":
    measure_here() if "--measure" in sys.argv else main()
