"""The val side of a config against its training side: right, or refused before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch

from pipeline.data.image_file import build_dataset
from pipeline.data.images import Images
from pipeline.data.validation import check_validation, prepare_metric
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.mmdet_compat.registry import METRICS, Config
from tests.conftest import CLASSES, detector, make_config, make_dataset

Change = Callable[[Config, dict[str, Any]], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("coco"), images=4)


def config(folder: Path, work: Path, change: Change = lambda cfg, content: None) -> Config:
    """A config whose val side has a file of its own, changed."""
    teacher = {"config": "teacher.py", "checkpoint": "teacher.pth"}
    cfg = Config.fromfile(make_config(folder, teacher, detector("retinanet"), work))
    content = json.loads((folder / "annotations.json").read_text())
    cfg.val_dataloader.dataset.ann_file = cfg.val_evaluator.ann_file = str(work / "val.json")
    change(cfg, content)
    (work / "val.json").write_text(json.dumps(content))
    return cfg


def test_a_sound_val_side(folder: Path, tmp_path: Path) -> None:
    check_validation(config(folder, tmp_path), CLASSES)


WRONG: dict[str, tuple[Change, type[PipelineError], str]] = {
    "categories in another order": (lambda cfg, c: c["categories"].reverse(), DataError, r"json: label 0 is 'dog'"),
    "a class is missing": (lambda cfg, c: c["categories"].pop(), DataError, r"val\.json: class 'dog' of metainfo"),
    "classes in another order": (
        lambda cfg, c: cfg.val_dataloader.dataset.metainfo.update(classes=CLASSES[::-1]),
        DataError,
        "val_dataloader.dataset: has 3 classes, the training set 3; first difference: label 0, 'dog' and",
    ),
    "fewer classes": (
        lambda cfg, c: cfg.val_dataloader.dataset.metainfo.update(classes=CLASSES[:2]),
        DataError,
        "has 2 classes, the training set 3; first difference: label 2, none and 'dog'",
    ),
    "one name without a comma": (
        lambda cfg, c: cfg.val_dataloader.dataset.metainfo.update(classes="person"),
        ConfigError,
        r"metainfo\.classes: expected a tuple of names .* needs a comma: \('person',\)",
    ),
    "workers that cannot persist": (
        lambda cfg, c: cfg.val_dataloader.update(persistent_workers=True),
        ConfigError,
        "persistent_workers=True needs num_workers above 0, found 0",
    ),
    "no box that counts": (
        lambda cfg, c: [row.update(iscrowd=1) for row in c["annotations"]],
        DataError,
        r"val\.json: none of its 4 images has a box of a class that is no crowd",
    ),
    "no mAP of boxes": (
        lambda cfg, c: cfg.val_evaluator.update(metric="proposal"),
        ConfigError,
        r"val_evaluator\.metric: expected 'bbox'",
    ),
    "masks of a detector without them": (
        lambda cfg, c: cfg.val_evaluator.update(metric=["bbox", "segm"]),
        ConfigError,
        r"val_evaluator\.metric: expected 'bbox'",
    ),
    "nothing is measured": (
        lambda cfg, c: cfg.val_evaluator.update(format_only=True),
        ConfigError,
        "format_only=True: measures nothing",
    ),
    "the mAP is left out": (
        lambda cfg, c: cfg.val_evaluator.update(metric_items=["mAP_75"]),
        ConfigError,
        "metric_items: expected 'mAP' and 'mAP_50' among them",
    ),
    "a file that is no path": (
        lambda cfg, c: cfg.val_evaluator.update(ann_file=3),
        ConfigError,
        "val_evaluator.ann_file: expected a path, found 3",
    ),
    "another format": (
        lambda cfg, c: cfg.val_dataloader.dataset.update(type="VOCDataset"),
        ConfigError,
        "val_dataloader.dataset: VOCDataset does not read boxes in COCO's format",
    ),
    "a sampler without end": (
        lambda cfg, c: cfg.val_dataloader.update(sampler={"type": "InfiniteSampler"}),
        ConfigError,
        "InfiniteSampler never ends",
    ),
    "a last batch that is left out": (
        lambda cfg, c: cfg.val_dataloader.update(drop_last=True),
        ConfigError,
        "drop_last=True: leaves out images",
    ),
    "no evaluator": (lambda cfg, c: cfg.pop("val_evaluator"), ConfigError, "val_evaluator: missing in the config"),
    "no crowd flags": (lambda cfg, c: c["annotations"][0].pop("iscrowd"), DataError, "has no 'iscrowd'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_measure_another_thing_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    change, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        check_validation(config(folder, tmp_path, change), CLASSES)


@pytest.mark.parametrize(("kinds", "message"), [("segm", None), (["bbox", "segm"], None), ("bbox", "expected 'segm'")])
def test_a_detector_of_masks_only_is_measured_by_masks(
    kinds: Any, message: str | None, folder: Path, tmp_path: Path
) -> None:
    """SOLO has a mask_head and predicts no boxes."""
    path = Path(mmdet.__file__).parent / ".mim" / "configs" / "solo" / "solo_r50_fpn_1x_coco.py"

    def change(cfg: Config, content: dict) -> None:
        cfg.model, cfg.val_evaluator.metric = Config.fromfile(path).model, kinds

    cfg = config(folder, tmp_path, change)
    with nullcontext() if message is None else pytest.raises(ConfigError, match=f"{message}.*masks only"):
        check_validation(cfg, CLASSES)


def test_an_evaluator_of_another_file(folder: Path, tmp_path: Path) -> None:
    """It would meet image ids that it does not know, after an epoch."""
    cfg = config(folder, tmp_path)
    other = json.loads((folder / "annotations.json").read_text())
    for row in other["images"]:
        row["id"] += 1000
    for row in other["annotations"]:
        row["image_id"] += 1000
    (tmp_path / "other.json").write_text(json.dumps(other))
    cfg.val_evaluator.ann_file = str(tmp_path / "other.json")
    with pytest.raises(DataError, match=r"val_evaluator\.ann_file: .*other\.json lacks 4 of the 4 images"):
        check_validation(cfg, CLASSES)


def dataset(folder: Path, **changes: Any) -> dict[str, Any]:
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "PackDetInputs"}]
    return {
        "type": "CocoDataset",
        "ann_file": str(folder / "annotations.json"),
        "data_prefix": {"img": str(folder)},
        "metainfo": {"classes": CLASSES},
        "pipeline": pipeline,
        **changes,
    }


def test_classes_from_a_text_file(folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(CLASSES) + "\n")
    assert Images(dataset(folder, metainfo={"classes": str(names)})).classes == CLASSES
    with pytest.raises(ConfigError, match="needs a comma"):
        Images(dataset(folder, metainfo={"classes": "person"}))


@pytest.mark.parametrize("given", [None, {"person": 0}, {"person"}])
def test_classes_that_are_no_tuple(folder: Path, given: Any) -> None:
    with pytest.raises(ConfigError, match=r"metainfo\.classes: expected a tuple of names, found"):
        Images(dataset(folder, metainfo={"classes": given}))


def test_classes_under_another_key(folder: Path) -> None:
    """mmdet would keep its default of 80 classes."""
    with pytest.raises(ConfigError, match=r"metainfo\.CLASSES: mmdet ignores this key; write it in lower case"):
        Images(dataset(folder, metainfo={"CLASSES": CLASSES}))


def test_a_data_set_of_crowds(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "annotations.json").read_text())
    for row in content["annotations"]:
        row["iscrowd"] = 1
    (tmp_path / "crowds.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="none of its 4 images has a box of a class that mmdet keeps and that is no"):
        Images(dataset(folder, ann_file=str(tmp_path / "crowds.json")))


def test_a_tuple_of_transforms(folder: Path) -> None:
    given = dataset(folder)
    assert Images({**given, "pipeline": tuple(given["pipeline"])}).pipeline == given["pipeline"]


def test_default_classes_on_a_file_with_some_of_them(folder: Path) -> None:
    """mmdet's 80 on a file of three would number its labels 0 to 2, whatever the names say."""
    with pytest.raises(DataError, match="class 'bicycle' of metainfo is not among its categories"):
        Images(dataset(folder, metainfo={}))


def test_images_without_boxes(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "annotations.json").read_text())
    for row in content["annotations"]:
        row["bbox"] = [1, 1, 0.5, 0.5]  # mmdet drops boxes below a pixel
    (tmp_path / "small.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="none of its 4 images has a box of a class that mmdet keeps"):
        Images(dataset(folder, ann_file=str(tmp_path / "small.json")))


def test_the_annotation_id_0_is_a_match(folder: Path, tmp_path: Path) -> None:
    """pycocotools counts a detection of this box as false: 0.86 instead of 1 for a perfect detector."""
    content = json.loads((folder / "annotations.json").read_text())
    for row in content["annotations"]:
        row["id"] -= 1
    path = tmp_path / "from_zero.json"
    path.write_text(json.dumps(content))
    metric: Any = METRICS.build({"type": "CocoMetric", "ann_file": str(path), "metric": "bbox"})
    metric.dataset_meta = {"classes": CLASSES}
    shown = build_dataset(dataset(folder, ann_file=str(path)), "val")
    shown.full_init()

    infos = prepare_metric(metric, shown)

    for info in infos:
        boxes = torch.tensor([box["bbox"] for box in info["instances"]])
        found = {"bboxes": boxes, "labels": torch.tensor([box["bbox_label"] for box in info["instances"]])}
        sample = {"img_id": info["img_id"], "ori_shape": (info["height"], info["width"])}
        metric.process({}, [{**sample, "pred_instances": {**found, "scores": torch.ones(len(boxes))}}])
    assert metric.evaluate(len(infos))["coco/bbox_mAP"] == 1
