"""Run both stages on many tiny images, and extrapolate time, memory and files to the 118,287 images of COCO.

python benchmarks/coco_count.py --json docs/results/coco_count.json
python benchmarks/coco_count.py --images 2000 8000 118287   # the real count; 10 to 15 CPU minutes, extrapolated

A thin RetinaNet teaches another one on 64x64 pixels: one pass of stage 1 and one epoch of stage 2. The annotation file
has its own rows for each image; 512 image files are shared by all rows. Each command is a process of its own, with its
wall and CPU seconds and its peak memory. Stage 1 runs again on the finished cache, and stage 2 resumes the finished
epoch: that is the time to start, to check and to end. Rows that exist in the JSON file are not measured again, so an
interrupted benchmark continues.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from tests.helpers.configs import make_config
from tests.helpers.datasets import CLASSES
from tests.helpers.detectors import detector, save_teacher

COCO, SIDE, FILES, VAL = 118_287, 64, 512, 64  # images of COCO, pixels, image files, images of the val set
SMALL = ("verify", "info")  # they need less memory than this process had when it started them, so it is not known
CHANGES = {
    "cache.batch_size": 32,
    "cache.shard_samples": 256,
    "cache.calibration_views": 64,
    "cache.passes": 1,
    "teacher.gate_images": VAL,
    "train_dataloader.batch_size": 32,
    "train_dataloader.dataset.pipeline.2.scale": (SIDE, SIDE),
    "val_dataloader.dataset.pipeline.1.scale": (SIDE, SIDE),
}


def write_images(folder: Path) -> None:
    """Write FILES noisy images with a bright square in each, at the place that `write_rows` annotates."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for n in range(FILES):
        picture = rng.integers(0, 90, (SIDE, SIDE, 3), np.uint8)
        x, y, side = square(n)
        picture[y : y + side, x : x + side, n % len(CLASSES)] = 255
        assert cv2.imwrite(str(folder / f"{n:03d}.jpg"), picture)


def square(n: int) -> tuple[int, int, int]:
    """Return the left, top and side of the square in image file n."""
    side = 16 + n % 24
    return n * 7 % (SIDE - side), n * 5 % (SIDE - side), side


def write_rows(path: Path, count: int) -> None:
    """Write an annotation file with `count` images, one box each."""
    ids = [5 * n + 1 for n in range(count)]
    images = [{"id": i, "file_name": f"{n % FILES:03d}.jpg", "width": SIDE, "height": SIDE} for n, i in enumerate(ids)]
    boxes = []
    for n, i in enumerate(ids):
        x, y, side = square(n % FILES)
        label = 1 + n % FILES % len(CLASSES)
        box = {"id": n + 1, "image_id": i, "category_id": label, "bbox": [x, y, side, side], "area": side * side}
        boxes.append({**box, "iscrowd": 0})
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))


def prepare(work: Path, count: int) -> Path:
    """Write the data, the teacher and the config for a number of images. Return the config."""
    folder = work / str(count)
    shutil.rmtree(folder, ignore_errors=True)  # stage 1 would reuse an existing cache
    data = folder / "data"
    write_images(data / "images")
    write_rows(data / "annotations.json", count)
    write_rows(data / "val.json", VAL)
    teacher = save_teacher(folder / "teacher", detector("retinanet"))
    val = str(data / "val.json")
    changes: dict[str, Any] = {"val_dataloader.dataset.ann_file": val, "val_evaluator.ann_file": val, **CHANGES}
    return make_config(data, teacher, detector("retinanet"), folder, **changes)


def measure(work: Path, count: int) -> dict[str, Any]:
    """Run all commands on `count` images. Return seconds, CPU seconds and GB of each, and the size of the cache."""
    config = prepare(work, count)
    folder = config.parent
    row: dict[str, Any] = {"images": count}
    for name, command in commands(config):
        used = common.run(command, folder / f"{name}.log")
        row |= {f"{name}_s": used.seconds, f"{name}_cpu_s": used.cpu_seconds}
        if name not in SMALL:
            row[f"{name}_gb"] = used.peak_gb
        print(f"{count} images: {name} {used.seconds:.1f} s", flush=True)
    files = [path for path in (folder / "cache").rglob("*") if path.is_file()]
    shared = sum(path.stat().st_size for path in (folder / "cache.images").glob("*"))
    return row | {"files": len(files), "bytes": sum(path.stat().st_size for path in files), "shared_bytes": shared}


def commands(config: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the commands by name, in order."""
    given, cache = ["--config", str(config)], str(config.parent / "cache")
    yield "stage1", ["stage1_cache_teacher.py", *given]
    yield "stage1_again", ["stage1_cache_teacher.py", *given]
    yield "verify", ["-m", "pipeline", "verify", cache]
    yield "info", ["-m", "pipeline", "info", cache]
    yield "stage2", ["stage2_distill.py", *given]
    yield "stage2_resumed", ["stage2_distill.py", *given, "--resume"]


def extrapolate(rows: list[dict[str, Any]], count: int = COCO) -> dict[str, Any] | None:
    """Continue the line through the two largest rows to `count` images; None if that is not needed or not possible."""
    if len(rows) < 2 or rows[-1]["images"] >= count:
        return None
    small, large = rows[-2:]
    ahead = (count - large["images"]) / (large["images"] - small["images"])
    return {key: large[key] + (large[key] - small[key]) * ahead for key in large}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 8000, 24000])
    parser.add_argument("--work", type=Path, default=Path("work_dirs/coco_count"))
    args = parser.parse_args()
    common.quiet()
    rows = [row for row in common.rows_so_far(args.json) if row["images"] in args.images]
    for count in sorted(set(args.images) - {row["images"] for row in rows}):
        rows.append(measure(args.work.resolve(), count))
        rows.sort(key=lambda row: row["images"])
        common.write(args.json, rows, extrapolated=extrapolate(rows))
    shown = [*rows, *filter(None, [extrapolate(rows)])]
    for row in shown:
        print(common.table([row], [key for key in row if not key.endswith("cpu_s")]))
    if len(shown) > len(rows):
        print("the last row is extrapolated from the two before it")


if __name__ == "__main__":
    main()
