"""Views of images. A view is a pure function of (seed, image id, view number).

The transforms are those of the config (train_dataloader.dataset.pipeline). If every transform chooses from a finite set
with equal probability (flip or not, one of several scales), view v is the v-th combination, and nothing is random. If a
transform draws from a range, view v is the pipeline's result with generators seeded by (seed, image id, v).

Some transforms, such as RandomCrop, return nothing where no box is left. mmdet then takes another image; here such a
view is not part of its pass.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from mmengine import fileio
from torch import Tensor

from pipeline.cache.shard_plan import mix
from pipeline.data.blank_steps import blank
from pipeline.data.image_size import check_image_file, describe_wrong_size
from pipeline.data.transforms import BY_BOXES, all_names, describe_rule, list_choices, require_replayable
from pipeline.data.view_record import PAD, make_record, padded
from pipeline.data.view_sizes import chain_without_pixels, run_chain
from pipeline.errors import ConfigError, DataError, PipelineError, brief
from pipeline.mmdet_compat.registry import TRANSFORMS, build, plain, type_name
from pipeline.records import ViewRecord

MEMORY_FILES = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of numpy and random inside the block, and restore them at the end."""
    with kept_generators():
        seed_generators(seed)
        yield


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the global generators of numpy and random at the end of the block. It takes 0.1 ms."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def seed_generators(seed: int) -> None:
    """Seed the global generators of numpy and random."""
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


class Views:
    """The views of every image under one data pipeline.

    pipeline: mmdet transform configs, LoadImageFromFile first and PackDetInputs last. Raises ViewError for a transform
    that mixes images or is not known to replay, and ConfigError where views.count is missing or wrong.
    """

    def __init__(self, pipeline: list[dict[str, Any]], seed: int, count: int | None) -> None:
        require_replayable(pipeline)
        self.seed, self.rule = seed, plain(pipeline)
        middle = [dict(t) for t in pipeline[1:-1]]
        options = [list_choices(t) for t in middle]
        if any(option is None for option in options):
            drawing = [type_name(t["type"]) for t, option in zip(middle, options) if option is None]
            if count is None:
                raise ConfigError(
                    f"views.count: missing, but {drawing} draw from ranges; set the number of draws per image"
                )
            self.count, self.finite, combinations = count, False, [tuple(middle)]
        else:
            combinations = list(itertools.product(*options))  # type: ignore[arg-type]
            if count not in (None, len(combinations)):
                raise ConfigError(
                    f"views.count: the transforms have {len(combinations)} views, found {count}; remove views.count"
                )
            self.count, self.finite = len(combinations), True
        self.recognised = describe_rule(middle, options, self.count)
        self._load, self._pack = build_transform(pipeline[0]), build_transform(pipeline[-1])
        local = {key: value for key, value in pipeline[0].items() if key not in ("backend_args", "file_client_args")}
        self._load_local = build_transform(local)  # for files that a cache stores
        self._steps = [[build_transform(cfg) for cfg in combination] for combination in combinations]
        self.by_boxes = bool(BY_BOXES & set(all_names(middle)))
        self._sized = [
            chain_without_pixels(steps, list(configs), self.by_boxes)
            for steps, configs in zip(self._steps, combinations)
        ]
        self._sizes: dict[tuple[int, ...], tuple[int, int] | None] = {}  # of finite views, by annotated size

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process, which plans no sizes."""
        return {**self.__dict__, "_sizes": {}, "_sized": [None] * len(self._steps)}

    def _transform(self, results: dict[str, Any], view: int) -> dict[str, Any] | None:
        """Return the transformed results; None where a transform leaves the view out, because no box is in it."""
        with seeded(mix(self.seed, int(results["img_id"]), view)):
            return run_chain(self._steps[view if self.finite else 0], results)

    def pad_shape(self, info: dict[str, Any], view: int) -> tuple[int, int] | None:
        """Return the padded (H, W) of a view; None if the transforms leave it out, because no box is in it.

        info: the annotated `img_id`, `height` and `width` of the image, and `instances` if `by_boxes`. The image is
        not read.
        """
        with kept_generators():
            return self.plan_pad_shape(info, view)

    def plan_pad_shape(self, info: dict[str, Any], view: int) -> tuple[int, int] | None:
        """Return `pad_shape`, and leave the global generators seeded: a plan of many views restores them once."""
        if not self.finite or self.by_boxes:
            return self._pad_shape(info, view)
        key = (info["height"], info["width"], view)
        if key not in self._sizes:
            self._sizes[key] = self._pad_shape(info, view)
        return self._sizes[key]

    def _pad_shape(self, info: dict[str, Any], view: int) -> tuple[int, int] | None:
        steps, boxes = self._sized[view if self.finite else 0], info["instances"] if self.by_boxes else []
        kind = np.float32 if getattr(self._load, "to_float32", False) else np.uint8
        shape = (info["height"], info["width"])
        try:
            image = np.zeros((*shape, 3), kind) if steps is None else blank(*shape, kind)
            results = {**info, "instances": boxes, "img": image, "img_shape": shape, "ori_shape": shape}
            seed_generators(mix(self.seed, int(info["img_id"]), view))
            made = run_chain(self._steps[view if self.finite else 0] if steps is None else steps, results)
            return None if made is None else padded(made["img"].shape)
        except Exception:  # `replay` fails on this image too, and names the image and the cause
            return (PAD, PAD)

    def read_file(self, info: dict[str, Any]) -> bytes:
        """Return the file of an image, as mmdet's transform would read it. Raise DataError that names the image."""
        where = describe_image(info)
        check_image_file(info, where)
        with image_read_errors(where):
            return fileio.get(info["img_path"], backend_args=getattr(self._load, "backend_args", None))

    def replay(
        self, info: dict[str, Any], view: int, thumbnail: bool = True, content: bytes | None = None
    ) -> tuple[Tensor, Any, ViewRecord]:
        """Return (inputs (3, H, W), mmdet's data sample, record) of one view. Raise DataError that names the image.

        content: the image's file, if it is not to be read from its path. Without `thumbnail`, the record's thumbnail is
        black. It takes 4 ms for a view of 800x1333, and callers that compare all pixels do not need it.
        """
        if content is None:
            return self._replay(self._load, info, view, thumbnail, describe_image(info))
        with file_of(content) as path:
            given = {**info, "img_path": path}
            inputs, sample, record = self._replay(
                self._load_local, given, view, thumbnail, f"image {info['img_id']} (its stored file)"
            )
        if "img_path" in sample:
            sample.set_metainfo({"img_path": info["img_path"]})
        return inputs, sample, record

    def _replay(
        self, load: Any, info: dict[str, Any], view: int, thumbnail: bool, where: str
    ) -> tuple[Tensor, Any, ViewRecord]:
        check_image_file(info, where)
        with image_read_errors(where):
            results = load({**info})
        if results is None or results.get("img") is None:
            raise DataError(f"{where}: the image cannot be decoded")
        height, width = results["img"].shape[:2]
        ori_shape = (int(height), int(width))
        if ori_shape != (info["height"], info["width"]):
            raise DataError(f"{where}: {describe_wrong_size(info, ori_shape)}")
        try:
            results = self._transform(results, view)
            packed = None if results is None else self._pack({**results})
        except Exception as error:  # a transform may raise any exception
            raise DataError(f"{where}, view {view}: a transform failed: {brief(error)}") from error
        if results is None or packed is None:
            raise DataError(f"{where}, view {view}: no box is left after the transforms; leave the view out")
        inputs = packed["inputs"]
        record = make_record(int(info["img_id"]), view, results, inputs, ori_shape, thumbnail)
        return inputs, packed["data_samples"], record


def build_transform(cfg: dict[str, Any]) -> Any:
    """Build an mmdet transform. Raise ConfigError that names it."""
    return build(TRANSFORMS, dict(cfg), f"transform {cfg['type']}")


def describe_image(info: dict[str, Any]) -> str:
    """Name an image in messages."""
    return f"image {info['img_id']} ({info['img_path']})"


@contextmanager
def image_read_errors(where: str) -> Iterator[None]:
    """Raise DataError, which begins with `where`, for an image that cannot be read."""
    try:
        yield
    except PipelineError:
        raise
    except FileNotFoundError as error:  # its own text repeats the file name
        raise DataError(f"{where}: no such file; check data_root and data_prefix") from error
    except Exception as error:  # a decoder may raise OSError, cv2.error, AssertionError and others
        raise DataError(f"{where}: cannot be read: {brief(error)}") from error


@contextmanager
def file_of(content: bytes) -> Iterator[str]:
    """Yield the path of a temporary file with this content, in memory where the system can: decoders read paths."""
    with open(os.memfd_create("image"), "wb") if MEMORY_FILES else tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}" if MEMORY_FILES else str(file.name)
