"""The images of a cache: those of the config's data set, of one annotation file or several."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from pipeline.data.image_file import ImageFile
from pipeline.data.wrappers import unwrap
from pipeline.errors import ConfigError, DataError, brief


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
    """An image of the val set that mmdet cannot read, in one line: DataError naming the file."""
    try:
        yield
    except (AssertionError, FileNotFoundError, cv2.error) as error:
        line = brief(error)
        if isinstance(error, AssertionError) and "failed to load image" not in line:
            raise
        raise DataError(f"val set: {line.removeprefix('AssertionError: ')}") from error


class Images:
    """The images of a config's data set, by image id: those of one annotation file, or of several (ConcatDataset).

    `folder`: where the parsed annotation files are kept for other processes and later starts (default: nowhere).
    `files`: one ImageFile each. `repeats`: how often an epoch shows each image (RepeatDataset). Raises ConfigError or
    DataError, also where an image id is in two files, or their pipelines or classes differ.
    """

    def __init__(self, dataset: dict[str, Any], folder: Path | None = None) -> None:
        inner, self.repeats = unwrap(dataset)
        configs = [copy.deepcopy(one) for one in inner]
        pipelines = [read_pipeline(config.pop("pipeline", None)) for config in configs]
        if any(one != pipelines[0] for one in pipelines):
            raise ConfigError(
                "train_dataloader.dataset.datasets: their pipelines differ, but all images of a cache have the same "
                "views; give all the same pipeline"
            )
        self.pipeline = pipelines[0]
        self.files: list[ImageFile] = []
        for config in configs:
            self._add(ImageFile(config, self.pipeline, folder))
        self.classes, self.metainfo = self.files[0].classes, self.files[0].metainfo

    def _add(self, file: ImageFile) -> None:
        """Add a file. Raise ConfigError where its classes differ, DataError where it repeats an image id."""
        for first in self.files:
            if file.classes != first.classes:
                raise ConfigError(
                    f"train_dataloader.dataset.datasets: the classes of {file.ann_file} differ from those of "
                    f"{first.ann_file}; give all the same metainfo.classes"
                )
            repeated = next((image for image in file.ids if image in first), None)
            if repeated is not None:
                raise DataError(
                    f"image id {repeated} is in {first.ann_file} and in {file.ann_file}, but a cache names an image "
                    "by its id; give each image its own id"
                )
        self.files.append(file)

    @property
    def total(self) -> int:
        """The number of images in the annotation files, with those that filter_cfg removes."""
        return sum(file.total for file in self.files)

    @property
    def notes(self) -> list[str]:
        """What mmdet leaves out without a word, a line each."""
        several = len(self.files) > 1
        return [f"{file.ann_file}: {note}" if several else note for file in self.files for note in file.notes]

    @property
    def where(self) -> str:
        """The annotation files, for messages."""
        return ", ".join(str(file.ann_file) for file in self.files)

    def __len__(self) -> int:
        return sum(map(len, self.files))

    @property
    def ids(self) -> list[int]:
        """Image ids in the order of the annotation files."""
        return [image for file in self.files for image in file.ids]

    def size(self, image_id: int) -> tuple[int, int]:
        """Return the annotated (height, width) of one image."""
        return self._holder(image_id).size(image_id)

    def info(self, image_id: int) -> dict[str, Any]:
        """mmdet's data_info of one image: img_path, height, width, instances, ..."""
        return self._holder(image_id).info(image_id)

    def _holder(self, image_id: int) -> ImageFile:
        for file in self.files:
            if image_id in file:
                return file
        raise DataError(f"image {image_id}: in the cache but not in {self.where} under this filter_cfg")


def read_pipeline(steps: Any) -> list[dict[str, Any]]:
    """Return the transforms of a data set's config. Raise ConfigError."""
    if not isinstance(steps, list | tuple) or not all(isinstance(s, dict) and "type" in s for s in steps):
        raise ConfigError("train_dataloader.dataset.pipeline: expected a list of transforms, each dict(type=...)")
    return [dict(step) for step in steps]
