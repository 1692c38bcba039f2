"""The data of the start-up benchmarks are what their pages say, so that the figures are those of real starts."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from benchmarks import coco_count, startup, startup_data
from pipeline.config import load_config
from pipeline.data.coco import check_annotations
from pipeline.data.shard_planning import images_and_views


def test_the_annotation_file_is_like_that_of_coco(tmp_path: Path) -> None:
    path = startup_data.write_data(tmp_path, 300)
    found = check_annotations(path, evaluated=True)
    content = json.loads(path.read_text())
    rows = content["annotations"]
    assert len(found.image_ids) == 300 and len(found.categories) == 80 and not found.orphans
    assert 5.5 < len(rows) / 300 < 8.5 and 400 < path.stat().st_size / len(rows) < 650
    assert any(row["iscrowd"] for row in rows) and all(row["segmentation"] for row in rows)
    assert [row["image_id"] for row in rows] != sorted(row["image_id"] for row in rows)
    for image in content["images"][:5]:
        picture = cv2.imread(str(tmp_path / "images" / image["file_name"]))
        assert picture.shape[:2] == (image["height"], image["width"])


@pytest.mark.slow
def test_a_start_ends_with_a_view(tmp_path: Path) -> None:
    """Both stages start on the cache that the benchmark writes, and count the images of the data set."""
    data, cache = startup_data.write_data(tmp_path, 60).parent, tmp_path / "cache"
    startup.write_cache(data, cache)
    found = [startup.STARTS[name](data, cache, False) for name in ("mmdet", "stage 1", "stage 2", "sizes of a pass")]
    assert len({row["images"] for row in found}) == 1
    assert all(row["cpu_seconds"] > 0 and row["peak_gb"] > 0.1 for row in found)
    assert 0 < found[2]["worker_mb"] < 0.1


def test_the_config_of_tiny_images(tmp_path: Path) -> None:
    config = coco_count.prepare(tmp_path, 40)
    images, views = images_and_views(*load_config(str(config)))
    assert len(images) == 40
    for image in images.ids[:3]:
        pixels, sample, record = views.replay(images.info(image), 0)
        x, y, side = (int(v) for v in (*sample.gt_instances.bboxes.tensor[0][:2], sample.gt_instances.bboxes.widths[0]))
        assert record.pad_shape == (64, 64)
        inside = pixels[:, y + 4 : y + side - 4, x + 4 : x + side - 4].float().mean((1, 2))
        assert inside.max() > 200


def test_extrapolation_is_a_line() -> None:
    rows = [{"images": n, "stage1_s": 5 + 0.1 * n, "files": n // 10} for n in (20, 80, 200)]
    found = coco_count.extrapolate(rows, 1000)
    assert found == pytest.approx({"images": 1000, "stage1_s": 105, "files": 100})
    assert coco_count.extrapolate(rows[:1], 1000) is None and coco_count.extrapolate(rows, 200) is None
