"""Rendered scenes as mmdet training batches. Every scene is new, and none is written to disk."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData
from torch.utils.data import Dataset

from demo.scenes import Scene, render


def resize(scene: Scene, scale: tuple[int, int], flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Transform a scene like the config's train pipeline: a keep-ratio resize, and a flip if ``flip``.

    Args:
        scene: the rendered scene.
        scale: largest (long, short) side in pixels.
        flip: mirror left to right.

    Returns:
        The image, and its (N, 4) boxes x1, y1, x2, y2 in the resized image.
    """
    height, width = scene.image.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    size = (int(width * factor + 0.5), int(height * factor + 0.5))
    image = cv2.resize(scene.image, size, interpolation=cv2.INTER_LINEAR)
    boxes = scene.boxes * np.array([size[0] / width, size[1] / height] * 2, np.float32)
    if flip:
        image = image[:, ::-1]
        boxes = np.stack([size[0] - boxes[:, 2], boxes[:, 1], size[0] - boxes[:, 0], boxes[:, 3]], 1)
    return image, boxes


def _pack(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, Any]:
    """Return (3, H, W) uint8 BGR and its DetDataSample, like mmdet's PackDetInputs."""
    from mmdet.structures import DetDataSample  # imported here, after mmcv's operators are installed

    truth = InstanceData()
    truth.bboxes = torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float32))
    truth.labels = torch.from_numpy(labels)
    sample = DetDataSample(metainfo=dict(img_shape=image.shape[:2], scale_factor=(1.0, 1.0)))
    sample.gt_instances = truth
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), sample


class SceneBatches(Dataset):
    """Batches of new scenes. Batch ``i`` is all landscape if i is even, otherwise all portrait, to reduce padding."""

    def __init__(self, seed: int, batches: int, batch_size: int, scale: tuple[int, int], classes: tuple[str, ...]):
        self.seed, self.batches, self.batch_size = seed, batches, batch_size
        self.scale, self.classes = scale, classes

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, batch: int) -> dict[str, Any]:
        if not 0 <= batch < self.batches:
            raise IndexError(batch)
        cv2.setNumThreads(1)  # the other cores are used for training
        rng = np.random.default_rng([self.seed, 99, batch])
        inputs, samples = [], []
        for index in range(batch * self.batch_size, (batch + 1) * self.batch_size):
            scene = render(self.seed, "train", index, self.classes, portrait=bool(batch % 2))
            image, boxes = resize(scene, self.scale, bool(rng.random() < 0.5))
            packed = _pack(image, boxes, scene.labels)
            inputs.append(packed[0])
            samples.append(packed[1])
        return dict(inputs=inputs, data_samples=samples)
