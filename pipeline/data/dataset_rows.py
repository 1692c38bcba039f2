"""Build mmdet's data_info of every image, from an annotation file that is read and parsed once and checked."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import mmengine

from pipeline import __version__
from pipeline.cache.canonical import canonical
from pipeline.data.coco import Annotations, check_content
from pipeline.data.coco_file import collector_paused, read_coco
from pipeline.data.image_rows import Parsed
from pipeline.errors import DataError
from pipeline.mmdet_compat.registry import DATASETS, MMDET, TRANSFORMS, config_errors, plain

RULE = 1  # raise it if other rows, checks or notes follow from the same key
STOCK = {"mmdet", "mmcv", "mmengine", "torch", "typing", "builtins"}  # packages whose classes `sharing_key` knows
# What a data set's config may set for its rows to be shared: these keys are in the key, or do not change the rows.
KNOWN = {"type", "_scope_", "ann_file", "data_root", "data_prefix", "metainfo", "filter_cfg", "indices", "test_mode"}
KNOWN |= {"backend_args", "lazy_init", "serialize_data", "max_refetch"}


def sharing_key(dataset: Any, config: dict[str, Any], sha256: str, masks: bool) -> dict[str, Any] | None:
    """Return all that decides the rows of a data set, as JSON; None if that is not known.

    A class of the user may read other files, and its code may change.
    """
    kind = type(dataset)
    if not is_stock(kind) or set(config) - KNOWN:
        return None
    key = {
        "rule": [RULE, __version__, MMDET, mmengine.__version__],
        "annotations": sha256,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "classes": list(dataset.metainfo["classes"]),
        "data_prefix": dict(dataset.data_prefix),
        "masks": masks,
        **{name: plain(config.get(name)) for name in ("filter_cfg", "indices", "test_mode")},
    }
    try:
        canonical(key)
    except (TypeError, ValueError):
        return None
    return key


def is_stock(kind: type) -> bool:
    """Return whether a class and all that it extends are of mmdet and the packages below it."""
    return all(parent.__module__.partition(".")[0] in STOCK for parent in kind.__mro__)


def ignores_masks(dataset: Any) -> bool:
    """Return whether the rows are the same without `segmentation`, but for the masks themselves."""
    coco: Any = DATASETS.get("CocoDataset")
    return is_stock(type(dataset)) and type(dataset).parse_data_info is coco.parse_data_info


def uses_masks(transforms: Any) -> bool:
    """Return whether transforms, or others inside them, may read the masks of a row."""
    if isinstance(transforms, dict):
        kind = transforms.get("type")
        found = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
        foreign = "type" in transforms and not (isinstance(found, type) and is_stock(found))
        return foreign or bool(transforms.get("with_mask")) or any(map(uses_masks, transforms.values()))
    return isinstance(transforms, list | tuple) and any(map(uses_masks, transforms))


def parse_rows(dataset: Any, path: Path, sha256: str, masks: bool) -> Parsed:
    """Parse and check an annotation file, and let mmdet make its rows of it. Raise ConfigError or DataError.

    `dataset`: built with lazy_init, and not initialised. `sha256`: what the file must still have.
    """
    content, found = read_coco(path, masks)
    if found != sha256:
        raise DataError(f"{path}: changed while it was read; run the command again")
    annotations = check_content(path, content)
    classes = tuple(dataset.metainfo["classes"])
    give_content(dataset, [content])
    del content  # mmdet's reader has the only reference, and drops it before filter_cfg
    dataset.serialize_data = False
    with contextlib.redirect_stdout(io.StringIO()), config_errors("train_dataloader.dataset"), collector_paused():
        dataset.full_init()  # pycocotools prints
    if not len(dataset):
        raise DataError(f"{path}: no image is left after filter_cfg={dataset.filter_cfg}")
    annotations.require_classes(classes)
    require_numbered_by(dataset, annotations)
    rows = list_rows(dataset)
    if not any(not instance["ignore_flag"] for row in rows for instance in row["instances"]):
        raise DataError(
            f"{path}: none of its {len(rows)} images has a box of a class that mmdet keeps and that is no "
            "crowd; check metainfo.classes, category ids, box sizes and iscrowd"
        )
    return Parsed(rows, len(annotations.image_ids), annotations.notes(classes))


def give_content(dataset: Any, parsed: list[dict[str, Any]]) -> None:
    """Let a data set that reads its file with mmdet's COCO class use the content that was parsed already.

    `parsed`: a list of the content, which is emptied. Other data sets read their file themselves.
    """
    coco: Any = DATASETS.get("CocoDataset")
    if getattr(dataset, "COCOAPI", None) is not coco.COCOAPI:
        parsed.clear()
        return

    def open_parsed(path: str) -> Any:
        made = coco.COCOAPI(None if parsed else path)
        if not parsed:
            return made
        made.dataset = parsed.pop()
        made.createIndex()
        made.img_ann_map, made.cat_img_map = made.imgToAnns, made.catToImgs
        return made

    dataset.COCOAPI = open_parsed


def list_rows(dataset: Any) -> list[dict[str, Any]]:
    """Return the data_info of all images, which the data set gives up where its get_data_info is mmengine's."""
    if type(dataset).get_data_info is not mmengine.dataset.BaseDataset.get_data_info:
        return [dataset.get_data_info(index) for index in range(len(dataset))]
    rows, dataset.data_list = dataset.data_list, []
    return rows


def require_numbered_by(dataset: Any, annotations: Annotations) -> None:
    """Compare the labels that mmdet made with the classes: a data set class may number them in its own way."""
    ids, classes = getattr(dataset, "cat_ids", None), list(dataset.metainfo["classes"])
    names = dict(annotations.categories)
    found = classes if ids is None else [names.get(key) for key in ids]
    if found != classes:
        raise DataError(
            f"{annotations.path}: {type(dataset).__name__} numbers its labels as {found[:5]}..., "
            f"expected the order of metainfo.classes, {classes[:5]}..."
        )
