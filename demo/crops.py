"""Single-object crops of all 80 categories, which the demo uses instead of ImageNet to pre-train backbones."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from demo.backgrounds import background
from demo.coco_names import ALL_CATEGORIES
from demo.cutouts import load_atlas
from demo.scenes import SPLITS, draw_cutout, finish, paste

# RGB, as in mmdet's usual preprocessing, so the weights can be used in mmdet.
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def render_crop(seed: int, index: int, side: int = 64) -> tuple[np.ndarray, int]:
    """Render one object, complete or cut by the border, on clutter, with up to two smaller objects in front of it.

    Returns:
        (side, side, 3) uint8 BGR and the index into ``ALL_CATEGORIES``.
    """
    rng = np.random.default_rng([seed, SPLITS["pretrain"], index])
    atlas = load_atlas()
    image = background(side, side, rng, shapes=5)
    label = int(rng.integers(len(ALL_CATEGORIES)))
    choices = atlas[ALL_CATEGORIES[label]]
    length = side * math.exp(rng.uniform(math.log(0.26), math.log(1.0)))
    cutout = draw_cutout(choices[rng.integers(len(choices))], length, rng)
    slack = max(side - length, 0.25 * side) / 2
    centre = side / 2 + rng.uniform(-slack, slack, 2)
    paste(image, cutout, *_corner(cutout, centre))
    others = list(atlas)
    for _ in range(int(rng.integers(0, 3))):
        choices = atlas[others[rng.integers(len(others))]]
        small = draw_cutout(choices[rng.integers(len(choices))], length * rng.uniform(0.3, 0.6), rng)
        angle = rng.uniform(0, 2 * math.pi)
        away = length * rng.uniform(0.4, 0.8) * np.array([math.cos(angle), math.sin(angle)])
        paste(image, small, *_corner(small, centre + away))
    return finish(image, rng), label


def _corner(cutout: np.ndarray, centre: np.ndarray) -> tuple[int, int]:
    return round(centre[0] - cutout.shape[1] / 2), round(centre[1] - cutout.shape[0] / 2)


class CropBatches(Dataset):
    """Batches of normalised crops: (B, 3, side, side) float32 and labels (B,) int64."""

    def __init__(self, seed: int, batches: int, batch_size: int, side: int = 64, first: int = 0):
        self.seed, self.batches, self.batch_size = seed, batches, batch_size
        self.side, self.first = side, first

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= batch < self.batches:
            raise IndexError(batch)
        cv2.setNumThreads(1)  # the other core is used for training
        start = self.first + batch * self.batch_size
        crops = [render_crop(self.seed, start + i, self.side) for i in range(self.batch_size)]
        pixels = np.stack([image for image, _ in crops])[..., ::-1].astype(np.float32)
        pixels = (pixels - MEAN) / STD
        labels = torch.tensor([label for _, label in crops])
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))), labels
