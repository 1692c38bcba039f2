"""Real COCO images through the configs of configs/coco: ids with gaps, crowds, grey JPEGs, views of 800x1333.

Skipped without the images, which are not part of this repository (tests/helpers/coco_sample.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.shard_plan import mix
from pipeline.config import load_config
from pipeline.data.shard_planning import images_and_views
from pipeline.data.views import seeded
from pipeline.integrity.compare_teacher import compare_live
from pipeline.integrity.verify import collect_findings
from pipeline.mmdet_compat.registry import DATASETS
from pipeline.progress import Silent
from tests.helpers.coco_sample import SAMPLE, TEACHER, chosen, crowds, few_images, grey, thin_config
from tests.helpers.distillation import distiller_and_batch, step
from tests.helpers.paths import ROOT
from tests.helpers.stages import stage1, stage2

pytestmark = pytest.mark.skipif(
    not SAMPLE.is_dir(), reason=f"no COCO images in {SAMPLE}; FRS_COCO_SAMPLE sets the folder"
)
ROWS = {
    "retinanet_r101_r50_2x": ["retinanet_r101_r18_2x", "retinanet_r101_r50_fpn384_2x"],
    "gfl_r101_r50_1x": [],
    "gfl_r101_r50_ms2x": [],
    "faster_rcnn_r101_r50_1x": [],
    "fcos_r101_r50_ms2x": [],
}


def teach(config: Path, images: int) -> None:
    """Run stage 1, and verify every sample of the cache, two of them with the teacher."""
    summary = stage1(config)
    cfg, sections = load_config(str(config))
    found = collect_findings(sections.cache.place(), True, Silent())
    assert found["whole"] and found["decoded"] == summary["views"] == images, found
    assert set(chosen("train").values()) <= Cache(sections.cache.place()).images()
    live = compare_live(cfg, sections, 2)
    assert live["views"] >= 2 and not live["bad"], live


def train(config: Path) -> None:
    """Run stage 2 for one epoch, and check that the student is finite."""
    summary = stage2(config)
    assert summary["epochs"] == 1
    (saved,) = Path(summary["work_dir"]).glob("epoch_*.pth")
    weights = torch.load(saved, weights_only=True)["state_dict"]
    assert weights and all(weight.isfinite().all() for weight in weights.values())


def require_live_equals_cached(config: Path) -> list[tuple[int, ...]]:
    """Compare losses and gradients of one batch. Returns the shapes of its views."""
    (cached_model, batch), (live_model, same) = (distiller_and_batch(config, source) for source in ("cache", "live"))
    (cached, gradients), (live, expected) = step(cached_model, batch), step(live_model, same)
    assert live.keys() == cached.keys() and expected.keys() == gradients.keys()
    assert {key: value.item() for key, value in cached.items()} == pytest.approx(
        {key: value.item() for key, value in live.items()}, rel=1e-5
    )
    both, wanted = (torch.cat([g[key].flatten() for key in expected]) for g in (gradients, expected))
    assert torch.linalg.norm(both - wanted) <= 1e-5 * torch.linalg.norm(wanted) > 0
    return [tuple(view.shape[1:]) for view in batch["inputs"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_both_stages_at_full_size(name: str, tmp_path: Path) -> None:
    config = thin_config(name, tmp_path)

    teach(config, images=len(chosen("train")))
    train(config)
    shapes = require_live_equals_cached(config)
    for other in ROWS[name]:
        train(thin_config(other, tmp_path))

    short, long = (max(min(s) for s in shapes), max(max(s) for s in shapes))
    assert (short, long) >= ((480, 640) if "_ms" in name else (800, 1000))


YOLOX = """_base_ = {teacher!r}
teacher = dict(config={teacher!r}, checkpoint={weights!r}, min_map=0.15, gate_images=40)
cache = dict(dir={cache!r}, codec=dict({codec}), passes=1, batch_size=4, calibration_views=12, workers=0)
distill = dict(feature_weight=0.01, score_weight=0.05, warmup_iters=0)
randomness = dict(seed=520)
log_level = "ERROR"
work_dir = {run!r}
"""


@pytest.mark.slow
@pytest.mark.skipif(not TEACHER.is_dir(), reason=f"no teacher in {TEACHER}")
@pytest.mark.parametrize(
    ("weights", "codec"),
    [("yolox_nano_coco.pth", "type='lossless'"), ("yolox_nano_coco_folded.pth", "type='frs', quality='small'")],
)
def test_a_teacher_trained_on_coco(weights: str, codec: str, tmp_path: Path) -> None:
    first = tmp_path / "first.py"
    files = {"teacher": str(TEACHER / "teacher.py"), "weights": str(TEACHER / weights)}
    folders = {"cache": str(tmp_path / "cache"), "run": str(tmp_path / "run")}
    first.write_text(YOLOX.format(codec=codec, **files, **folders))
    moved = {"data_root": f"{SAMPLE}/"}
    cfg, _ = load_config(str(first), moved)
    cfg, _ = load_config(str(first), {**moved, **few_images(cfg, 3, 9), "train_cfg.max_epochs": 1})
    config = tmp_path / "config.py"
    cfg.dump(config)

    teach(config, images=12)
    gate = json.loads((tmp_path / "cache" / "gate.json").read_text())
    train(config)

    assert gate["images"] == 40 and 0.2 < gate["mAP"] < 0.5
    if "lossless" in codec:
        require_live_equals_cached(config)


@pytest.mark.parametrize("name", ["retinanet_r101_r50_2x", "gfl_r101_r50_ms2x"])
def test_views_are_mmdets(name: str) -> None:
    """Crowds are ignored boxes and grey images have three equal channels, as in mmdet's own data set."""
    path, moved = str(ROOT / "configs" / "coco" / f"{name}.py"), {"data_root": f"{SAMPLE}/"}
    cfg, _ = load_config(path, moved)
    cfg, sections = load_config(path, {**moved, **few_images(cfg)})
    images, views = images_and_views(cfg, sections)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)

    assert images.ids == list(chosen("train").values()) and max(images.ids) > images.total
    for index, image in enumerate(images.ids):
        view, sample, record = views.replay(images.info(image), 0)
        with seeded(mix(sections.views.seed, image, 0)):
            theirs = dataset[index] if not views.finite else matching_flip(dataset, index, sample.flip)
        assert torch.equal(view, theirs["inputs"]) and record.shape == tuple(view.shape[1:])
        for part in ("gt_instances", "ignored_instances"):
            own, other = getattr(sample, part), getattr(theirs["data_samples"], part)
            assert torch.equal(own.bboxes.tensor, other.bboxes.tensor) and torch.equal(own.labels, other.labels)
        assert len(sample.ignored_instances.bboxes) == crowds("train").get(image, 0)
        assert (image in grey("train")) == all(torch.equal(view[0], channel) for channel in view)


def matching_flip(dataset: Any, index: int, flip: bool) -> dict[str, Any]:
    """Return an item of mmdet's data set that was flipped or not, as wanted."""
    return next(item for item in (dataset[index] for _ in range(100)) if item["data_samples"].flip == flip)
