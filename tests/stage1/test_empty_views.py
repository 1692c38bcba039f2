"""Views that a transform leaves out because no box is in them: listed, not cached, not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.cache import Cache
from pipeline.config import load_config
from pipeline.data.shard_planning import images_and_views, is_empty
from pipeline.mmdet_compat.registry import Config
from pipeline.progress import Silent
from pipeline.stage1.run import cache_teacher
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector
from tests.helpers.stages import stage1, stage2, tree


@pytest.fixture
def config(data: Path, teacher: dict[str, str], tmp_path: Path) -> Path:
    """Crops of 24 pixels: about half of the views have no box."""
    changes = {"views.count": 2, "model.backbone.norm_eval": True}  # a view of 32 pixels has one value per channel
    path = make_config(data, teacher, detector("retinanet"), tmp_path / "work", "lossless", **changes)
    cfg = Config.fromfile(path)
    cfg.train_dataloader.dataset.pipeline[3:3] = [{"type": "RandomCrop", "crop_size": (24, 24)}]
    cfg.dump(path)
    return path


def test_they_are_listed_and_left_out(config: Path) -> None:
    cfg, sections = load_config(str(config))
    images, views = images_and_views(cfg, sections)
    empty = [{i for i in images.ids if is_empty(images, views, number, i)} for number in range(2)]
    assert all(0 < len(part) < len(images) for part in empty) and empty[0] != empty[1]
    lines: list[str] = []

    summary = cache_teacher(cfg, sections, lines.append, Silent())

    cache: Any = Cache(cfg.cache.dir)
    for number in range(2):
        cached = {ref.image_id for shard in cache.references(number) for ref in shard}
        assert cached == set(images.ids) - empty[number]
        assert cache.quarantine(number).images == empty[number]
        assert any(f"{len(empty[number])} of 12 in pass {number} have no box left" in line for line in lines)
    assert (summary["views"], summary["quarantined"]) == (24 - sum(map(len, empty)), sum(map(len, empty)))
    assert stage2(config)["images"] == 12 - len(empty[0])
    before = tree(Path(cfg.cache.dir))
    stage1(config)
    assert tree(Path(cfg.cache.dir)) == before  # finished: nothing is planned again


def test_a_lost_list_is_made_again(config: Path) -> None:
    stage1(config)
    cfg, _ = load_config(str(config))
    before = tree(Path(cfg.cache.dir))
    for name in ("quarantine.json", "manifest.json"):
        (Path(cfg.cache.dir) / "pass-1" / name).unlink()

    stage1(config)

    assert tree(Path(cfg.cache.dir)) == before
