"""Data set wrappers: RepeatDataset multiplies the passes of an epoch; others are refused with their replacement."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.data.images import Images
from pipeline.data.stream import Stream
from pipeline.data.validation import check_validation
from pipeline.errors import ConfigError
from pipeline.stage2.teacher_data import prepare_teacher_data
from tests.helpers.datasets import CLASSES


def repeated(dataset: Any, times: Any) -> dict[str, Any]:
    return {"type": "RepeatDataset", "times": times, "dataset": dict(dataset)}


@pytest.fixture
def dataset(made: dict[str, Path]) -> Any:
    cfg, _ = load_config(str(made["lossless"]))
    return cfg.train_dataloader.dataset


def test_an_epoch_is_as_many_passes_as_the_data_set_is_repeated(made: dict[str, Path]) -> None:
    cfg, sections = load_config(str(made["lossless"]))
    once = Stream(prepare_teacher_data(cfg, sections).stream, batch_size=4, seed=0)
    cfg.train_dataloader.dataset = repeated(cfg.train_dataloader.dataset, 3)

    thrice = Stream(prepare_teacher_data(cfg, sections).stream, batch_size=4, seed=0)  # the same cache

    epochs = []
    for epoch in range(6):
        once.set_epoch(epoch)
        epochs.append(once.batches())
    assert thrice.batches() == epochs[0] + epochs[1] + epochs[2]
    assert len(thrice) == sum(map(len, epochs[:3]))
    thrice.set_epoch(1)
    assert thrice.batches() == epochs[3] + epochs[4] + epochs[5]
    shown = Counter((ref.image_id, ref.view) for batch in thrice.batches() for ref in batch)
    assert set(Counter(image for image, _ in shown.elements()).values()) == {3}
    assert set(shown.values()) == {1, 2}  # passes 3, 4 and 5 show views 1, 0 and 1


def test_repeats_multiply(dataset: Any) -> None:
    images = Images(repeated(repeated(dataset, 2), 3))
    assert (images.repeats, len(images), images.files[0].type) == (6, 12, "CocoDataset")
    assert Images(dataset).repeats == 1


@pytest.mark.parametrize("times", [0, -1, True, 1.5, None, "2"])
def test_times_is_a_whole_number(dataset: Any, times: Any) -> None:
    with pytest.raises(ConfigError, match=r"train_dataloader.dataset.times: expected a whole number"):
        Images(repeated(dataset, times))


REFUSED = {
    "ClassBalancedDataset": "shows some images more often",
    "MyWrapper": "use the inner dataset itself",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_wrappers_are_refused_with_what_replaces_them(dataset: Any, kind: str) -> None:
    wrapper = {"type": kind, "dataset": dataset}
    for wrapped in (wrapper, repeated(wrapper, 2), {"type": "ConcatDataset", "datasets": [dataset, wrapper]}):
        with pytest.raises(ConfigError, match=f"wrapper {kind}: .*{REFUSED[kind]}"):
            Images(wrapped)


def test_a_mixing_wrapper_names_a_pipeline_that_replays(dataset: Any) -> None:
    names = ("Mosaic", "RandomAffine", "MixUp", "YOLOXHSVRandomAug", "RandomFlip", "Resize", "Pad", "PackDetInputs")
    yolox = {"type": "MultiImageMixDataset", "dataset": dataset, "pipeline": [{"type": name} for name in names]}
    kept = "LoadImageFromFile -> LoadAnnotations -> YOLOXHSVRandomAug -> RandomFlip -> Resize -> Pad -> PackDetInputs"
    with pytest.raises(ConfigError, match=f"MultiImageMixDataset: mixes images.*remove Mosaic and MixUp, .*{kept}"):
        Images(yolox)


@pytest.mark.parametrize("kind", ["VOCDataset", "OpenImagesDataset", "CocoPanopticDataset"])
def test_a_format_without_coco_boxes_is_named(dataset: Any, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind} does not read boxes in COCO's format"):
        Images({**dataset, "type": kind})


def test_the_val_set_has_coco_boxes_too(made: dict[str, Path]) -> None:
    cfg, _ = load_config(str(made["lossless"]))
    cfg.val_dataloader.dataset.type = "VOCDataset"
    with pytest.raises(ConfigError, match=r"val_dataloader.dataset: VOCDataset does not read boxes"):
        check_validation(cfg, CLASSES)
