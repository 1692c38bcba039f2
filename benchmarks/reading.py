"""Measure how fast a cache is read on one core: 800x1067 RetinaNet views, in both format versions and three other ways.

python benchmarks/reading.py --config configs/demo/retinanet_r101_r50.py --quality high --distinct 4 \
    --json docs/results/reading.json

"this cache" is the work of a stage 2 worker for one view: one read, sha256, header check, zstd, check of the tokens.
"format version 1" is the same on a shard of version 1, which has crc32c. The others read the same views: webdataset's
tar iteration and zarr-python from the same shard, and torch.load from one file of fp16 tensors per image. All read from
the page cache, and alternate. `overhead`: bytes of a view besides its encoded arrays, in the tar and its sidecar.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import webdataset as wds
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, scenes
from benchmarks.codec_rivals import CONFIG
from benchmarks.sample import DrawnSample, calibrate
from benchmarks.student import load_teacher
from pipeline.cache.reader import ShardReader
from pipeline.cache.shard_plan import ShardPlan
from pipeline.cache.versions import FORMATS
from pipeline.cache.zarr_store import TarStore
from pipeline.codecs.base import Codec
from pipeline.data.views import padded
from pipeline.records import THUMBNAIL, ViewRecord
from pipeline.stage1.encode import encode_views
from pipeline.stage1.shard import new_shard
from pipeline.stage1.target import ShardTarget
from pipeline.teacher.model import Teacher

SIZE = "800x1067"


def write_shards(root: Path, teacher: Teacher, codec: Codec, distinct: int, samples: int) -> dict[int, Path]:
    """Write a shard of `samples` views, of which `distinct` differ, in each version. Return them by version.

    Also write one fp16 file for each distinct view.
    """
    views = [scenes.scene(n, SIZE) for n in range(distinct)]
    outputs = [teacher([view]).to("cpu") for view in views]
    for n, output in enumerate(outputs):
        half = {name: [t.half() for t in getattr(output, name)] for name in ("features", "scores", "frs")}
        torch.save(half, root / f"{n}.pth")

    sizes = [(views[n % distinct].shape[1], views[n % distinct].shape[2]) for n in range(samples)]
    plan = ShardPlan(tuple((padded(size), ((n + 1, 0),)) for n, size in enumerate(sizes)))
    thumbnail = np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8)
    records = [
        ViewRecord(n + 1, 0, size, size, padded(size), 0, 2**31 + n, n, thumbnail) for n, size in enumerate(sizes)
    ]
    paths = {version: root / f"shard-0000{version}.tar" for version in FORMATS}
    identity = {"pass": 0, "shard": 0, "plan": "plan", "recipe": "recipe"}
    levels = [teacher.levels(pad) for _, _, pad in plan.samples]
    for version, path in paths.items():
        with new_shard(ShardTarget(path, version, identity, codec, "codec", plan, levels)) as shard:
            for n, record in enumerate(records):
                shard.add(encode_views(codec, outputs[n % distinct], [record]))
            shard.commit()
    return paths


def measure_overhead(path: Path) -> float:
    """Return the bytes of a view besides its encoded arrays: in head, samples, tail and sidecar."""
    reader = ShardReader(path)
    names = [name for name in reader.sidecar.bytes_by_array if name not in ("record", "thumbnail")]
    arrays = sum(reader.sidecar.bytes_by_array[name] for name in names)
    return (path.stat().st_size + path.with_suffix(".json").stat().st_size - arrays) / len(reader)


def by_this_cache(codec: Codec, path: Path) -> Iterator[Any]:
    """Read with this project's reader."""
    reader = ShardReader(path)
    yield from (reader.read(n, codec) for n in range(len(reader)))


def by_webdataset(path: Path) -> Iterator[Any]:
    """Read with webdataset's own rule for keys."""
    head: Any = ShardReader(path).head
    for sample in wds.WebDataset(str(path), shardshuffle=False):
        if sample["__key__"].startswith("samples/") and "0" in sample:
            chunks = head.chunks([memoryview(sample["0"])])
            yield head.decode(int(sample["__key__"].split("/")[1]), chunks, None)


def by_zarr(path: Path) -> Iterator[Any]:
    """Read with zarr-python."""
    group: Any = zarr.open_group(TarStore(path), mode="r")
    head: Any = ShardReader(path).head
    names = [item["name"] for item in group.attrs["arrays"]]
    for n, _ in enumerate(group["index/record"][:]):
        yield head.decode(n, {name: memoryview(item) for name, item in zip(names, group["samples"][n])}, None)


def by_torch_load(path: Path) -> Iterator[Any]:
    """Read the fp16 files with torch.load."""
    for file in sorted(path.parent.glob("*.pth")):
        yield torch.load(io.BytesIO(file.read_bytes()), weights_only=True)


def count(read: Callable[[Path], Iterator[Any]], path: Path) -> int:
    """Read every sample, and return their number."""
    return sum(1 for _ in read(path))


OTHERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "webdataset, tar iteration": by_webdataset,
    "zarr-python": by_zarr,
    "torch.load, fp16": by_torch_load,
}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--quality", default="balanced")
    parser.add_argument("--distinct", type=int, default=8)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    common.quiet()
    torch.set_num_threads(1)
    teacher, _ = load_teacher(args.config)
    # Tables and steps do not depend on the image size. Calibration on small views takes a tenth of the time.
    codec = calibrate(DrawnSample(teacher, partial(scenes.scene, size="320", split="train"), 24, 8), args.quality)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), teacher, codec, args.distinct, args.samples)
        own = partial(by_this_cache, codec)
        parts = {"this cache": partial(count, own, paths[2]), "format version 1": partial(count, own, paths[1])}
        parts |= {name: partial(count, read, paths[2]) for name, read in OTHERS.items()}
        views = {name: part() for name, part in parts.items()}
        times = common.in_turns(parts, args.rounds)
        sizes = {version: path.stat().st_size / args.samples / 1e3 for version, path in paths.items()}
        overhead = {version: measure_overhead(path) for version, path in paths.items()}
    rates = {name: [views[name] / seconds for seconds in found] for name, found in times.items()}
    first = rates["this cache"]
    rows = [
        {
            "way": name,
            "views_per_second": median(found),
            "ours_is_faster": median(a / b for a, b in zip(first, found)),
        }
        for name, found in rates.items()
    ]
    print(common.table(rows, list(rows[0])))
    common.write(args.json, rows, size=SIZE, quality=args.quality, kb_view=sizes, overhead_bytes_a_view=overhead)


if __name__ == "__main__":
    main()
