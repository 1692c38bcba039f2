"""ConcatDataset: one cache of the images of several annotation files, which have different ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.data.images import Images
from pipeline.data.stream import Stream
from pipeline.errors import ConfigError, DataError, StaleCache
from pipeline.recipe import read_inputs
from pipeline.stage2.teacher_data import prepare_teacher_data
from tests.helpers.configs import make_config
from tests.helpers.datasets import CLASSES
from tests.helpers.detectors import detector
from tests.helpers.stages import stage1

PARTS = ("first.json", "second.json")


def split(data: Path, folder: Path) -> list[str]:
    """Write the annotations of a data set as two files: of the first eight images, and of the others."""
    content = json.loads((data / "annotations.json").read_text())
    paths = []
    for name, images in zip(PARTS, (content["images"][:8], content["images"][8:])):
        ids = {image["id"] for image in images}
        boxes = [box for box in content["annotations"] if box["image_id"] in ids]
        (folder / name).write_text(json.dumps({**content, "images": images, "annotations": boxes}))
        paths.append(str(folder / name))
    return paths


def joined(one: Any, files: list[str], **changes: Any) -> dict[str, Any]:
    """The data set `one` with its images in several files. changes: of the second part."""
    parts = [{**one, "ann_file": file} for file in files]
    parts[1] |= changes
    return {"type": "ConcatDataset", "datasets": parts}


@pytest.fixture
def config(data: Path, teacher: dict[str, str], tmp_path: Path) -> Path:
    return make_config(data, teacher, detector("retinanet"), tmp_path, "lossless", **{"cache.passes": 1})


@pytest.fixture
def one(config: Path) -> Any:
    """The data set of one file."""
    return load_config(str(config))[0].train_dataloader.dataset


def test_the_images_are_those_of_all_files(one: Any, data: Path, tmp_path: Path) -> None:
    whole, files = Images(one), split(data, tmp_path)
    for dataset in (
        joined(one, files),
        {"type": "RepeatDataset", "times": 3, "dataset": joined(one, files)},
        {"type": "ConcatDataset", "datasets": [{"type": "ConcatDataset", "datasets": [joined(one, files)]}]},
    ):
        images = Images(dataset)
        assert images.ids == whole.ids and (len(images), images.total) == (len(whole), whole.total)
        assert images.repeats == (3 if dataset["type"] == "RepeatDataset" else 1)
        assert (images.classes, images.pipeline) == (whole.classes, whole.pipeline)
        for image in images.ids:
            for key in ("img_path", "height", "width", "instances"):
                assert images.info(image)[key] == whole.info(image)[key]
    with pytest.raises(DataError, match=r"image 7: in the cache but not in .*first.json, .*second.json"):
        Images(joined(one, files)).info(7)


def test_both_stages(config: Path, one: Any, data: Path, tmp_path: Path) -> None:
    """The views and their order are those of one file with all images. Another part makes the cache stale."""
    whole = stage1(config)
    files = split(data, tmp_path)
    changed = {"train_dataloader.dataset": joined(one, files), "cache.dir": str(tmp_path / "joined")}
    made = stage1(config, **changed)
    assert (made["views"], made["bytes"]) == (whole["views"], whole["bytes"])
    streams = [
        Stream(prepare_teacher_data(*load_config(str(config), options)).stream, batch_size=4, seed=0)
        for options in ({}, changed)
    ]
    assert streams[0].batches() == streams[1].batches()
    assert len(next(iter(streams[1]))["inputs"]) == 4
    swapped = {**changed, "train_dataloader.dataset": joined(one, files[::-1])}
    with pytest.raises(StaleCache, match="annotations_sha256"):
        prepare_teacher_data(*load_config(str(config), swapped))


def test_the_recipe_of_one_file_has_no_lists(config: Path, one: Any) -> None:
    cfg, sections = load_config(str(config))
    alone = read_inputs(cfg, sections).recipe
    cfg.train_dataloader.dataset = {"type": "ConcatDataset", "datasets": [one]}
    assert read_inputs(cfg, sections).recipe == alone and alone["data"]["dataset"] == "CocoDataset"


def same_ids(one: Any, files: list[str]) -> dict[str, Any]:
    return joined(one, [files[0], files[0]])


def other_classes(one: Any, files: list[str]) -> dict[str, Any]:
    return joined(one, files, metainfo={"classes": CLASSES[:2]})


def other_pipeline(one: Any, files: list[str]) -> dict[str, Any]:
    return joined(one, files, pipeline=one["pipeline"][:-1])


def one_repeated(one: Any, files: list[str]) -> dict[str, Any]:
    second = {"type": "RepeatDataset", "times": 2, "dataset": {**one, "ann_file": files[1]}}
    return {"type": "ConcatDataset", "datasets": [{**one, "ann_file": files[0]}, second]}


def no_list(one: Any, files: list[str]) -> dict[str, Any]:
    return {"type": "ConcatDataset", "datasets": one}


REFUSED: dict[Callable[..., Any], str] = {
    same_ids: r"image id 100 is in .*first.json and in .*first.json.*give each image its own id",
    other_classes: r"the classes of .*second.json differ from those of .*first.json",
    other_pipeline: "their pipelines differ.*give all the same pipeline",
    one_repeated: "put the RepeatDataset around the ConcatDataset",
    no_list: r"train_dataloader.dataset.datasets: expected a list of data sets",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_cannot_be_joined(make: Callable[..., Any], one: Any, data: Path, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=REFUSED[make]) as stopped:
        Images(make(one, split(data, tmp_path)))
    assert "\n" not in str(stopped.value)
