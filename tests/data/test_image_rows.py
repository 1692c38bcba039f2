"""The rows of a data set are mmdet's own; one process parses them, others and later starts share them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.data import dataset_rows, image_rows, shared_folder
from pipeline.data.images import Images
from pipeline.errors import DataError
from pipeline.mmdet_compat.registry import DATASETS, TRANSFORMS
from tests.helpers.forks import exit_code, in_child

CLASSES = ("person", "car", "dog")
BOXES = {"type": "LoadAnnotations", "with_bbox": True}
PIPELINE = [{"type": "LoadImageFromFile"}, BOXES, {"type": "Resize", "scale": (64, 64)}, {"type": "PackDetInputs"}]
KINDS: list[dict[str, Any]] = [  # of annotations: plain, crowds, ignored, dropped, of other categories and images
    {"bbox": [1, 2, 8.5, 9], "segmentation": [[1.25, 2, 9.5, 2, 9.5, 11]]},
    {"iscrowd": 1, "segmentation": {"counts": [3, 4, 5], "size": [48, 64]}},
    {"ignore": 1},
    {"bbox": [60.5, 40, 30, 30], "segmentation": []},
    {"bbox": [1, 2, 0.5, 9]},
    {"bbox": [-20, 2, 10, 9]},
    {"area": 0},
    {"category_id": 44},
    {"category_id": 9},
    {"image_id": 999},
    {"iscrowd": True, "bbox": [0.1, 0.2, 1e2, 7.0000001]},
]


def content() -> dict[str, Any]:
    """Images in another order than that of their ids, one without boxes, one of crowds only, one small."""
    ids = [501, 7, 88, 12, 2**61, 3]
    images = [{"id": n, "file_name": f"ü {n}.jpg", "width": 64, "height": 48} for n in ids]
    images[3].update(width=20, height=30)
    rows = []
    for number in range(40):
        row = {"image_id": ids[(number * 5) % 4], "category_id": 1 + number % 3, "bbox": [1, 2, 8, 9], "area": 72.5}
        rows.append({"id": 900 - number, "iscrowd": 0, **row, **KINDS[number % len(KINDS)]})
    rows.append({**rows[0], "id": 5000, "image_id": 2**61, "iscrowd": 1})
    categories = [{"id": 9, "name": "cat"}, *({"id": n + 1, "name": name} for n, name in enumerate(CLASSES))]
    return {"images": images, "annotations": rows, "categories": categories}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "instances.json").write_text(json.dumps(content()))
    return tmp_path / "instances.json"


def config(path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "type": "CocoDataset",
        "data_root": str(path.parent),
        "ann_file": path.name,
        "data_prefix": {"img": "images/"},
        "metainfo": {"classes": CLASSES},
        "pipeline": PIPELINE,
        **changes,
    }


def images(path: Path, **changes: Any) -> Images:
    return Images(config(path, **changes), path.parent / "shared")


def rows_of(found: Images) -> list[dict[str, Any]]:
    return [found.info(image) for image in found.ids]


def exact(value: Any) -> str:
    """Text that shows types too: 1, 1.0 and True differ."""
    return repr(value)


def no_parsing(*given: Any) -> Any:
    raise AssertionError("the annotation file was parsed")


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "filtered": {"filter_cfg": {"filter_empty_gt": True, "min_size": 32}},
    "empty images stay": {"filter_cfg": {"filter_empty_gt": False, "min_size": 0}},
    "test mode": {"filter_cfg": {"filter_empty_gt": True}, "test_mode": True},
    "first images": {"indices": 2},
    "some images": {"indices": [3, 0]},
    "two classes": {"metainfo": {"classes": CLASSES[:2]}},
    "not serialised": {"serialize_data": False},
    "prompts": {"return_classes": True, "caption_prompt": {"dog": {"suffix": ", a dog"}}},
    "masks": {"pipeline": [PIPELINE[0], {**BOXES, "with_mask": True}, *PIPELINE[2:]]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_those_of_mmdet(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same images, order, labels, flags and types of values, on the first and on a second start."""
    own = DATASETS.build({**config(path, **CONFIGS[name]), "pipeline": []})
    wanted = [own.get_data_info(index) for index in range(len(own))]
    if name != "masks":
        for instance in (instance for row in wanted for instance in row["instances"]):
            instance.pop("mask", None)

    first, alone = images(path, **CONFIGS[name]), Images(config(path, **CONFIGS[name]))
    if name != "prompts":  # those may depend on more than the key
        monkeypatch.setattr(dataset_rows, "read_coco", no_parsing)
    second = images(path, **CONFIGS[name])

    assert len(wanted) > 1
    for found in (first, alone, second):
        assert exact(rows_of(found)) == exact(wanted)
        assert [found.size(row["img_id"]) for row in wanted] == [(row["height"], row["width"]) for row in wanted]
        assert (found.total, found.notes) == (first.total, first.notes)
        assert found.files[0].sha256 == first.files[0].sha256
    for image in (0, 8, 2**62, -1):
        with pytest.raises(DataError, match=f"image {image}: in the cache but not in"):
            second.info(image)


def test_rows_are_copies(path: Path) -> None:
    """A transform may change what it gets."""
    found = images(path)
    found.info(501)["instances"].clear()
    assert found.info(501)["instances"]


def edit(path: Path) -> dict[str, Any]:
    path.write_text(path.read_text().replace("72.5", "72.6"))
    return {}


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "file": edit,
    "filter": lambda path: {"filter_cfg": {"filter_empty_gt": True}},
    "classes": lambda path: {"metainfo": {"classes": CLASSES[:2]}},
    "folder of images": lambda path: {"data_prefix": {"img": "others/"}},
    "indices": lambda path: {"indices": 3},
    "masks": lambda path: CONFIGS["masks"],
    "class": lambda path: {"type": "CityscapesDataset"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_inputs_are_parsed_again(name: str, path: Path) -> None:
    images(path)
    changes = CHANGES[name](path)
    assert exact(rows_of(images(path, **changes))) == exact(rows_of(Images(config(path, **changes))))
    assert len(list((path.parent / "shared").glob("*.json"))) == 2


@pytest.mark.parametrize("suffix", [".json", ".rows"])
def test_damaged_rows_are_parsed_again(suffix: str, path: Path) -> None:
    wanted = exact(rows_of(images(path)))
    (file,) = (path.parent / "shared").glob(f"*{suffix}")
    raw = bytearray(file.read_bytes())
    for change in (lambda: raw.__setitem__(99, raw[99] ^ 1), lambda: raw.__delitem__(slice(150, None)), raw.clear):
        change()
        file.write_bytes(raw)
        assert exact(rows_of(images(path))) == wanted
        assert bytes(raw) != file.read_bytes()


def test_a_forged_link_is_not_followed(path: Path) -> None:
    wanted = exact(rows_of(images(path)))
    (file,) = (path.parent / "shared").glob("*.rows")
    file.rename(path.parent / "elsewhere")
    file.symlink_to(path.parent / "elsewhere")
    assert exact(rows_of(images(path))) == wanted and not file.is_symlink()


def test_old_rows_are_deleted(path: Path) -> None:
    """And what a killed process left; files of others stay."""
    first, folder = images(path), path.parent / "shared"
    wanted = exact(rows_of(first))
    (folder / "mine.json").write_text("{}")
    (folder / f"a.rows.{'0' * 16}.tmp").write_text("left by a killed process")
    for indices in range(2, 8):
        images(path, indices=indices)
    assert sorted(file.suffix for file in folder.iterdir() if file.suffix) == [".json"] * 5 + [".rows"] * 4
    assert (folder / "mine.json").exists() and exact(rows_of(first)) == wanted  # still open


def test_faults_are_found_on_every_start(path: Path) -> None:
    """The rows of a file with a fault are never kept."""
    broken = content()
    broken["annotations"][4]["bbox"] = [1, 2, 3]
    path.write_text(json.dumps(broken))
    for _ in range(2):
        with pytest.raises(DataError, match=r"annotation number 4 .*: bbox must be four finite numbers"):
            images(path)


def test_a_file_that_changes_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.image_file.sha256_file", lambda file: "0" * 64)
    with pytest.raises(DataError, match=r"instances\.json: changed while it was read; run the command again"):
        images(path)


def test_a_class_of_the_user_is_parsed_on_every_start(path: Path) -> None:
    """Its code may change, and it may use the masks."""
    factor = 2

    class Scaled(DATASETS.get("CocoDataset")):  # type: ignore[misc]
        def parse_data_info(self, raw_data_info: dict) -> dict:
            info = super().parse_data_info(raw_data_info)
            info["points"] = factor * sum(len(row.get("segmentation") or ()) for row in raw_data_info["raw_ann_info"])
            return info

    DATASETS.register_module("Scaled", module=Scaled, force=True)
    twice = [row["points"] for row in rows_of(images(path, type="Scaled"))]
    factor = 6
    assert [row["points"] for row in rows_of(images(path, type="Scaled"))] == [3 * points for points in twice]
    assert sum(twice) > 0


def test_masks_are_kept_where_a_transform_may_use_them() -> None:
    class LoadAnnotations(TRANSFORMS.get("LoadAnnotations")):  # type: ignore[misc]
        """A transform of the user with a known name."""

    uses = dataset_rows.uses_masks
    assert not uses(PIPELINE) and not uses([{"type": "RandomChoice", "transforms": [[BOXES], [BOXES]]}])
    assert uses([{**BOXES, "with_mask": True}]) and uses([{**BOXES, "type": LoadAnnotations}])
    assert uses([{"type": "RandomChoice", "transforms": [[BOXES], [{**BOXES, "with_mask": True}]]}])
    assert uses([{"type": "NoSuchTransform"}])


def test_a_folder_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start is slower, and nothing else changes."""
    wanted = exact(rows_of(Images(config(path))))
    (path.parent / "shared").write_text("a file in the way")
    assert exact(rows_of(images(path))) == wanted

    def full(*given: Any) -> None:
        raise OSError("No space left on device")

    (path.parent / "shared").unlink()
    monkeypatch.setattr(image_rows, "write_json", full)
    assert exact(rows_of(images(path))) == wanted
    assert not list((path.parent / "shared").glob("*.json")) + list((path.parent / "shared").glob("*.tmp"))


def test_processes_that_start_together_parse_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, parsed = dataset_rows.read_coco, path.parent / "parsed"
    parsed.touch()

    def slowly(*given: Any) -> Any:
        with open(parsed, "a") as file:
            file.write("once ")
        time.sleep(0.2)
        return read(*given)

    monkeypatch.setattr(dataset_rows, "read_coco", slowly)
    children = [in_child(lambda: rows_of(images(path))) for _ in range(3)]
    assert [exit_code(child) for child in children] == [0, 0, 0]
    assert parsed.read_text() == "once "


def test_the_private_folder_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = shared_folder.private_folder()
    assert folder is not None and folder.stat().st_mode & 0o777 == 0o700 and shared_folder.private_folder() == folder
    folder.chmod(0o777)
    assert shared_folder.private_folder() is None
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert shared_folder.private_folder() is None


def test_where_rows_are_kept(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the cache, or on this machine where the cache is remote."""
    monkeypatch.setattr(shared_folder.tempfile, "gettempdir", lambda: str(tmp_path))

    def folder(**cache: str) -> Path | None:
        options = {f"cache.{key}": value for key, value in cache.items()}
        return shared_folder.shared_folder(load_config(str(made["frs"]), options)[1])

    assert (
        folder(dir=f"{tmp_path}/a/cache/") == tmp_path / "a" / "cache.images" == folder(dir=f"{tmp_path}/a/b/../cache")
    )
    assert folder(dir="s3://bucket/cache", local=f"{tmp_path}/disk") == tmp_path / "disk.images"
    assert folder(dir="http://server/cache") == tmp_path / f"frs-teacher-cache-{os.getuid()}"
    assert folder(dir="/") is None
