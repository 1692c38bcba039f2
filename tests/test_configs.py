"""The configs that ship: they load, their teachers exist in mmdet's zoo, students fit their teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import load_config
from pipeline.data.views import Views
from pipeline.mmdet_compat.registry import MODELS
from pipeline.stage2.hooks import check_hooks
from pipeline.stage2.settings import check_training
from pipeline.teacher.heads import output_shapes
from pipeline.teacher.zoo import find_teacher
from tests.helpers.paths import ROOT

CONFIGS = ROOT / "configs"
# Views an image, positions of a padded 800x1067 view, score channels, epochs; the teacher's FPN has 256 channels.
COCO = {
    "retinanet_r101_r50_2x": (2, 18134, 720, 24),
    "retinanet_r101_r18_2x": (2, 18134, 720, 24),
    "retinanet_r101_r50_fpn384_2x": (2, 18134, 720, 24),
    "gfl_r101_r50_1x": (2, 18134, 80, 12),
    "gfl_r101_r50_ms2x": (4, 18134, 80, 24),
    "faster_rcnn_r101_r50_1x": (2, 72471, 3, 12),
    "fcos_r101_r50_ms2x": (4, 18134, 80, 24),
}
SHIPPED = sorted(
    p
    for p in CONFIGS.rglob("*.py")
    if not p.name.startswith(("teacher_", "student")) and p.parent.name != "features"  # test_feature_teachers.py
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_config(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    cfg, sections = load_config(str(path))
    pipeline = [dict(step) for step in cfg.train_dataloader.dataset.pipeline]
    views = Views(pipeline, sections.views.seed, sections.views.count)
    spec = find_teacher(sections.teacher)
    with torch.device("meta"):  # shapes alone: weights of R101 take a second each to initialise
        teacher, student = MODELS.build(spec.cfg.model), MODELS.build(cfg.model)
    assert teacher.backbone.depth == 101
    shape = (800, 1088) if "coco" in path.parts else (192, 288)
    taught, own = output_shapes(teacher, shape), output_shapes(student, shape)
    check_hooks(cfg, student, pipeline)
    check_training(cfg)
    assert taught[0] == own[0] and taught[2] == own[2]
    if "coco" in path.parts:
        positions = sum(h * w for h, w in taught[0])
        assert (views.count, positions, taught[2], cfg.train_cfg.max_epochs) == COCO[path.stem]
        assert set(taught[1]) == {256} and views.finite == (path.stem != "gfl_r101_r50_ms2x")
        assert cfg.randomness.seed == 520 and sections.distill.warmup_iters == 500
        assert spec.url is not None and spec.url.endswith(".pth") and spec.checkpoint.name == spec.url.split("/")[-1]
    else:
        assert views.count == (4 if path.stem.endswith("_ms") else 2) and views.finite


def test_every_row_of_the_paper_has_a_config() -> None:
    assert {path.stem for path in SHIPPED if "coco" in path.parts} == set(COCO)


def test_second_student_is_short() -> None:
    lines = (CONFIGS / "demo" / "retinanet_r101_r18.py").read_text().splitlines()
    assert len(lines) <= 10


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_r101_fpn_2x_coco",
        "gfl_r101_fpn_ms-2x_coco",
        "faster-rcnn_r101_fpn_1x_coco",
        "fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco",
    ],
)
def test_the_papers_teachers_are_in_the_zoo(name: str) -> None:
    from pipeline.sections import TeacherSection

    spec = find_teacher(TeacherSection(name=name))
    assert spec.url is not None and spec.url.startswith("https://") and "r101" in spec.url
    assert spec.cfg.model.backbone.depth == 101


def test_data_root_moves_every_path() -> None:
    path = str(CONFIGS / "coco" / "retinanet_r101_r50_2x.py")
    (before, _), (after, _) = load_config(path), load_config(path, {"data_root": "/mnt/my coco"})
    assert str(after.pretty_text).count("/mnt/my coco") == str(before.pretty_text).count("data/coco/") > 5
    assert "data/coco" not in after.pretty_text
    assert after.val_evaluator.ann_file == "/mnt/my coco/annotations/instances_val2017.json"
    assert after.train_dataloader.dataset.pipeline == before.train_dataloader.dataset.pipeline
