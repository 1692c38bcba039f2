"""Unusual images and boxes, and images that change after stage 1."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.cache.cache import Cache
from pipeline.config import load_config
from pipeline.data.images import Images
from pipeline.data.views import Views
from pipeline.errors import DataError, ReplayMismatch
from tests.helpers.configs import make_config
from tests.helpers.datasets import make_dataset
from tests.helpers.detectors import detector
from tests.helpers.stages import stage1, stage2

BROKEN = {205: "long.png", 206: "cut.jpg", 207: "empty.jpg"}


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, data: Path, teacher: dict[str, str]) -> Path:
    """Config of six ordinary images and all unusual ones. The val set is another data set, of ordinary images."""
    root = tmp_path_factory.mktemp("odd")
    mine = make_dataset(root / "data", images=6)
    content, images = json.loads((mine / "annotations.json").read_text()), mine / "images"
    noise(96, 64).convert("L").save(images / "grey.jpg")
    noise(96, 64).convert("CMYK").save(images / "cmyk.jpg")
    Image.fromarray(np.arange(96 * 64, dtype=np.uint16).reshape(64, 96) * 10).save(images / "deep.png")
    noise(96, 64).save(images / "turned.jpg", exif=turned(6))  # stored 96x64, shown 64x96
    noise(1, 1).save(images / "one.png")
    noise(20000, 10).save(images / "long.png")
    whole = (images / "000.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "empty.jpg").write_bytes(b"")
    noise(96, 64).convert("RGBA").save(images / "alpha.png")
    sizes = {"turned": (64, 96), "one": (1, 1), "long": (20000, 10)}
    names = ["grey.jpg", "cmyk.jpg", "deep.png", "turned.jpg", "one.png", *BROKEN.values(), "alpha.png"]
    for n, name in enumerate(names, 200):
        width, height = sizes.get(name.split(".")[0], (96, 64))
        content["images"].append({"id": n, "file_name": name, "width": width, "height": height})
    # Boxes outside the image, without area, partly outside, and a crowd. Some images have no box.
    boxes = [(200, [-500, -500, 20, 20], 0), (201, [10, 10, 0, 0], 0), (202, [90, 60, 100, 100], 0)]
    boxes.append((203, [1, 1, 30, 30], 1))
    for n, (image, box, crowd) in enumerate(boxes, 1000):
        area = box[2] * box[3]
        row = {"id": n, "image_id": image, "category_id": 1, "bbox": box, "area": area, "iscrowd": crowd}
        content["annotations"].append(row)
    (mine / "annotations.json").write_text(json.dumps(content))
    val = {"val_dataloader.dataset.data_root": str(data), "val_evaluator.ann_file": str(data / "annotations.json")}
    return make_config(mine, teacher, detector("retinanet"), root / "work", "frs", **val)


def test_odd_images_are_cached_or_listed(odd: Path) -> None:
    with pytest.raises(DataError, match=r"image 20[567] \(.*(long\.png|cut\.jpg|empty\.jpg)"):
        stage1(odd)
    assert not list((odd.parent / "cache").glob("pass-*/manifest.json"))
    summary = stage1(odd, **{"cache.quarantine": True})
    cfg, _ = load_config(str(odd))
    images = Images(cfg.train_dataloader.dataset)
    cache = Cache(odd.parent / "cache")
    assert cache.images() == set(images.ids) - BROKEN.keys() and len(images) == 15
    assert summary["views"] + summary["quarantined"] == 2 * len(images) and summary["quarantined"] == 6
    for number in cache.passes():
        listed = dict(cache.manifest(number)["quarantine"])
        assert listed.keys() == BROKEN.keys() and all(BROKEN[n] in reason for n, reason in listed.items())
    assert stage2(odd)["images"] == 12


@pytest.mark.slow
def test_images_without_boxes_as_mmdet_filters_them(odd: Path, tmp_path: Path) -> None:
    """filter_empty_gt and min_size act as in mmdet: exactly the remaining images are cached."""
    options: dict[str, Any] = {
        "train_dataloader.dataset.filter_cfg": {"filter_empty_gt": True, "min_size": 32},
        "cache.dir": str(tmp_path / "cache"),
        "cache.quarantine": True,
    }
    stage1(odd, **options)
    cfg, _ = load_config(str(odd), options)
    kept = set(Images(cfg.train_dataloader.dataset).ids)
    assert Cache(tmp_path / "cache").images() == kept - BROKEN.keys() and not kept & {204, 205, 208}


@pytest.fixture(scope="module")
def finished(teacher: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("changing")
    mine = make_dataset(root / "data", images=6)
    config = make_config(mine, teacher, detector("retinanet"), root / "work", "frs")
    stage1(config)
    return config, mine / "images" / "000.jpg"


@pytest.fixture
def changing(finished: tuple[Path, Path]) -> Iterator[tuple[Path, Path]]:
    """A config with its finished cache, and the image that a test changes."""
    before = finished[1].read_bytes()
    yield finished
    finished[1].write_bytes(before)


def reencode(path: Path) -> None:
    cv2.imwrite(str(path), cv2.imread(str(path)), [cv2.IMWRITE_JPEG_QUALITY, 70])


def turn(path: Path) -> None:
    """Change only the EXIF flag, not the stored pixels."""
    picture = Image.open(path)
    picture.save(path, exif=turned(3), quality="keep")


def mirror(path: Path) -> None:
    cv2.imwrite(str(path), cv2.imread(str(path))[:, ::-1])


def replace(path: Path) -> None:
    shutil.copy(path.with_name("003.jpg"), path)  # another picture
    picture = cv2.resize(cv2.imread(str(path)), (96, 64))
    cv2.imwrite(str(path), picture)


LONGER = [pytest.param(change, marks=pytest.mark.slow) for change in (mirror, replace)]


@pytest.mark.parametrize("change", [reencode, turn, *LONGER])
def test_a_changed_image(changing: tuple[Path, Path], change: Any) -> None:
    """'exact' names the image and both checksums. 'close' accepts small changes of pixels, but not another picture."""
    config, picture = changing
    change(picture)
    with pytest.raises(
        ReplayMismatch, match=r"image 100, view \d: pixels differs .* expected \d+, got \d+; no library changed"
    ):
        stage2(config)
    if change is reencode:
        assert stage2(config, **{"views.check": "close"})["views_check"] == "close"
    else:
        with pytest.raises(ReplayMismatch, match=r"image 100, view \d: thumbnails differ by \d+"):
            stage2(config, **{"views.check": "close"})


def test_another_opencv(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A resize that rounds differently: the error of 'exact' names both versions, and 'close' accepts it."""
    from mmcv.image import geometric

    from pipeline.data import replay

    resize, here = geometric.cv2.resize, replay.library_versions()

    def other(image: np.ndarray, *given: Any, **named: Any) -> np.ndarray:
        out = resize(image, *given, **named)
        return out if out.shape[:2] == (8, 8) else np.where(out < 255, out + (out % 7 == 3), out).astype(out.dtype)

    monkeypatch.setattr(geometric.cv2, "resize", other)
    monkeypatch.setattr(replay, "library_versions", lambda: {**here, "opencv-python-headless": "9.9.9"})
    with pytest.raises(
        ReplayMismatch, match=r"pixels differs .* libraries changed: opencv-python-headless 4\S+ -> 9\.9\.9"
    ):
        stage2(made["frs"])
    assert stage2(made["frs"], **{"views.check": "close"})["views_check"] == "close"


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_an_image_turned_by_exif(tmp_path: Path, turn: int) -> None:
    """The error names EXIF and both remedies, and each of them works. Other wrong sizes are not blamed on EXIF."""
    path = tmp_path / "turned.jpg"
    noise(96, 64).save(path, exif=turned(turn))  # stored 96x64, shown 64x96
    raw = {"color_type": "color_ignore_orientation"}
    pipelines = [[{"type": "LoadImageFromFile", **more}, {"type": "PackDetInputs"}] for more in ({}, raw)]
    shown, stored = (Views(pipeline, 0, None) for pipeline in pipelines)
    info = {"img_id": 7, "img_path": str(path), "width": 96, "height": 64, "instances": []}
    with pytest.raises(DataError) as error:
        shown.replay(info, 0)
    text = str(error.value)
    assert f"says 96x64, the image is 64x96 with its EXIF orientation {turn}" in text and "\n" not in text
    assert "set color_type='color_ignore_orientation'" in text and "correct width and height" in text
    assert stored.replay(info, 0)[0].shape == (3, 64, 96)
    right = {**info, "width": 64, "height": 96}
    assert shown.replay(right, 0)[0].shape == (3, 96, 64)
    with pytest.raises(DataError, match=rf"without its EXIF orientation {turn}, which .* ignores; remove color_type"):
        stored.replay(right, 0)
    with pytest.raises(DataError, match=r"says 90x60, the image is 64x96; correct width and height"):
        shown.replay({**info, "width": 90, "height": 60}, 0)


def test_a_wrong_size_without_exif(tmp_path: Path) -> None:
    path = tmp_path / "plain.jpg"
    noise(96, 64).save(path)
    views = Views([{"type": "LoadImageFromFile"}, {"type": "PackDetInputs"}], 0, None)
    with pytest.raises(DataError, match="says 64x96, the image is 96x64; correct width and height"):
        views.replay({"img_id": 7, "img_path": str(path), "width": 64, "height": 96, "instances": []}, 0)


@pytest.mark.parametrize("kind", ["FIFO", "device", "too large", "other size"])
def test_what_is_no_image_of_its_size(data: Path, teacher: dict, tmp_path: Path, kind: str) -> None:
    """Refused by its header before it is decoded: none of these may block or fill the memory."""
    copied = make_dataset(tmp_path / "data")
    picture = copied / "images" / "003.jpg"
    picture.unlink()
    if kind == "FIFO":
        os.mkfifo(picture)
    elif kind == "device":
        picture.symlink_to("/dev/zero")
    elif kind == "too large":
        with open(picture, "wb") as file:
            file.truncate((256 << 20) + 1)
    else:
        Image.new("1", (20000, 20000)).save(picture, "PNG")
    val = {"val_dataloader.dataset.data_root": str(data), "val_evaluator.ann_file": str(data / "annotations.json")}
    config = make_config(copied, teacher, detector("retinanet"), tmp_path, "lossless", **val)
    expected = {"too large": "expected at most 256 MiB", "other size": "image is 20000x20000|pixels"}
    with pytest.raises(DataError, match=rf"image 103 .*({expected.get(kind, 'expected a regular file')})"):
        stage1(config)
