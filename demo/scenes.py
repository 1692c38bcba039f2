"""Render a synthetic scene: cut-outs of the atlas on a cluttered background, with boxes around the visible parts.

A scene is a pure function of the arguments of ``render``. It does not depend on the number of workers or scenes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from demo.backgrounds import background
from demo.coco_names import DEMO_CATEGORIES
from demo.cutouts import DISTRACTOR, load_atlas, recolour, transform

SPLITS = {"train": 0, "val": 1, "pretrain": 2}
EMPTY_SHARE = 0.03  # share of images without objects (COCO: about 1%); 100 images contain a few
OBJECTS = 7.3  # mean number of objects drawn in an image, as in COCO; some are hidden by others
MIN_VISIBLE = 0.25  # share of a cut-out's area; with less, the category cannot be recognised
MIN_SIDE = 3  # smallest side of a box in pixels


class Scene(NamedTuple):
    """A rendered scene of N objects."""

    image: np.ndarray  # (H, W, 3) uint8 BGR
    boxes: np.ndarray  # (N, 4) float32 x1, y1, x2, y2 in pixels, tight around the visible pixels
    labels: np.ndarray  # (N,) int64 index into the categories
    areas: np.ndarray  # (N,) int64 visible pixels


def scene_size(rng: np.random.Generator, sides: tuple[int, int], portrait: bool | None) -> tuple[int, int]:
    """Draw (width, height) within ``sides``. If ``portrait`` is None, half of the sizes are portrait."""
    low, high = sides
    long = int(rng.integers(low + (high - low) // 3, high + 1))
    short = int(np.clip(round(long / rng.uniform(1.15, 1.75)), low, high))
    drawn = bool(rng.random() < 0.5)
    return (short, long) if (drawn if portrait is None else portrait) else (long, short)


def _object_side(rng: np.random.Generator, width: int, height: int) -> float:
    """Draw an object's longer side in pixels, log-uniform relative to the image, so many objects are small."""
    return math.exp(rng.uniform(math.log(0.07), math.log(0.48))) * math.sqrt(width * height)


def paste(image: np.ndarray, cutout: np.ndarray, x: int, y: int) -> tuple[slice, slice, np.ndarray]:
    """Blend a premultiplied cut-out into ``image``, in place, with its top left at (x, y), which may be outside.

    Returns:
        Rows, columns, and the boolean mask of the cut-out's solid pixels there. It may be empty.
    """
    height, width = image.shape[:2]
    h, w = cutout.shape[:2]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    rows, columns = slice(y1, max(y1, y2)), slice(x1, max(x1, x2))
    part = cutout[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    if part.size:
        rest = cv2.bitwise_not(cv2.merge([part[..., 3]] * 3))
        faded = cv2.multiply(np.ascontiguousarray(image[rows, columns]), rest, scale=1 / 255)
        image[rows, columns] = cv2.add(faded, np.ascontiguousarray(part[..., :3]))
    return rows, columns, part[..., 3] > 127


def _place(owner: np.ndarray, cutout: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a top-left corner. Up to a third may be outside the image. Three tries avoid large overlaps."""
    height, width = owner.shape
    h, w = cutout.shape[:2]
    for _ in range(3):
        x = int(rng.uniform(-0.3 * w, max(width - 0.7 * w, 1.0)))
        y = int(rng.uniform(-0.3 * h, max(height - 0.7 * h, 1.0)))
        under = owner[max(y, 0) : y + h, max(x, 0) : x + w]
        if under.size and np.count_nonzero(under) < 0.3 * under.size:
            break
    return x, y


def draw_cutout(pyramid: list[np.ndarray], side: float, rng: np.random.Generator) -> np.ndarray:
    """Return a cut-out with random rotation, mirroring, stretch and colour."""
    angle = float(rng.normal(0.0, 9.0))
    out = transform(pyramid, side, angle, bool(rng.random() < 0.5), math.exp(rng.uniform(-0.18, 0.18)))
    gain = rng.uniform(0.6, 1.25) * rng.uniform(0.88, 1.12, 3)
    return recolour(out, gain, rng.uniform(-10.0, 40.0))


def finish(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate a camera: add a slight blur and sensor noise at random. The noise repeats one tile, to be fast."""
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.0)))
    if rng.random() < 0.5:
        height, width = image.shape[:2]
        tile = rng.normal(0.0, rng.uniform(2.0, 9.0), (64, 64, 3)).astype(np.int16)
        field = np.tile(tile, (-(-height // 64), -(-width // 64), 1))[:height, :width]
        image = np.clip(image.astype(np.int16) + field, 0, 255).astype(np.uint8)
    return image


class Drawn(NamedTuple):
    """A labelled cut-out in a scene: its mark in the owner map, its position, and its full area in pixels."""

    mark: int
    label: int
    rows: slice
    columns: slice
    area: int


def visible(owner: np.ndarray, drawn: list[Drawn]) -> tuple[list, list, list]:
    """Return boxes, labels and areas of the cut-outs that are visible enough."""
    boxes, labels, areas = [], [], []
    for item in drawn:
        mask = owner[item.rows, item.columns] == item.mark
        area = int(np.count_nonzero(mask))
        if area < max(MIN_VISIBLE * item.area, 1):
            continue
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        if min(w, h) >= MIN_SIDE:
            x, y = x + item.columns.start, y + item.rows.start
            boxes.append((x, y, x + w, y + h))
            labels.append(item.label)
            areas.append(area)
    return boxes, labels, areas


def render(
    seed: int,
    split: str,
    index: int,
    categories: tuple[str, ...] = DEMO_CATEGORIES,
    *,
    sides: tuple[int, int] = (192, 384),
    portrait: bool | None = None,
) -> Scene:
    """Render scene ``index`` of ``split`` ('train', 'val' or 'pretrain').

    Args:
        seed: seed of the data set.
        split: each split has its own random streams.
        index: index of the scene in the split.
        categories: COCO names. ``Scene.labels`` are indices of it.
        sides: shortest and longest side of an image in pixels.
        portrait: orientation. None: draw it.
    """
    rng = np.random.default_rng([seed, SPLITS[split], index])
    atlas = load_atlas()
    width, height = scene_size(rng, sides, portrait)
    image = background(width, height, rng)
    owner = np.zeros((height, width), np.int16)
    objects = 0 if rng.random() < EMPTY_SHARE else int(1 + rng.poisson(OBJECTS - 1))
    labels = [int(v) for v in rng.integers(0, len(categories), objects)]
    queue = rng.permutation(labels + [-1] * int(rng.integers(0, 5)))
    drawn: list[Drawn] = []
    for mark, label in enumerate(queue.astype(int).tolist(), start=1):
        choices = atlas[DISTRACTOR if label < 0 else categories[label]]
        cutout = draw_cutout(choices[rng.integers(len(choices))], _object_side(rng, width, height), rng)
        rows, columns, solid = paste(image, cutout, *_place(owner, cutout, rng))
        owner[rows, columns][solid] = mark
        if label >= 0:
            drawn.append(Drawn(mark, label, rows, columns, int(np.count_nonzero(cutout[..., 3] > 127))))
    boxes, kept, areas = visible(owner, drawn)
    return Scene(
        finish(image, rng),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(kept, np.int64),
        np.array(areas, np.int64),
    )
