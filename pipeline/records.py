"""Records that cross layers.

Shape legend: B batch, L FPN levels, C channels, K score channels, (H_l, W_l) grid of level l.
Everything here is plain data: no record knows where it came from (live teacher or cache).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # looking at a cache takes a tenth of a second, importing torch takes two
    import torch
    from torch import Tensor

FLIPS = ("none", "horizontal", "vertical", "diagonal")
THUMBNAIL = 8  # side of the thumbnail in pixels: enough to tell a flip or another image, 192 bytes
RECORD_COLUMNS = (
    "image_id", "view", "height", "width", "ori_height", "ori_width", "pad_height", "pad_width",
    "flip", "pixels_crc32c", "boxes_crc32c",
)  # fmt: skip

LevelShapes = tuple[tuple[int, int], ...]  # ((H_0, W_0), ..., (H_{L-1}, W_{L-1}))


@dataclass(frozen=True)
class ViewRecord:
    """What came out of an image's transforms; enough to know a replay when one sees it.

    Sizes are (height, width) in pixels: `shape` of the view, `ori_shape` of the image file, `pad_shape` of the
    view padded on its own. `flip` indexes FLIPS. `pixels` and `boxes` are crc32c of the packed view's bytes (C, H, W)
    and of its float32 boxes with their labels. `thumbnail` is (8, 8, 3) uint8.
    """

    image_id: int
    view: int
    shape: tuple[int, int]
    ori_shape: tuple[int, int]
    pad_shape: tuple[int, int]
    flip: int
    pixels: int
    boxes: int
    thumbnail: np.ndarray

    def row(self, levels: LevelShapes) -> np.ndarray:
        """(11 + 2L,) int64: RECORD_COLUMNS, then the height and width of every FPN level."""
        numbers = [self.image_id, self.view, *self.shape, *self.ori_shape, *self.pad_shape]
        numbers += [self.flip, self.pixels, self.boxes]
        return np.array(numbers + [side for level in levels for side in level], dtype=np.int64)

    @classmethod
    def from_row(cls, row: np.ndarray, thumbnail: np.ndarray) -> tuple[ViewRecord, LevelShapes]:
        """Inverse of `row`."""
        n = [int(x) for x in row]
        fixed, sides = n[: len(RECORD_COLUMNS)], n[len(RECORD_COLUMNS) :]
        image_id, view, h, w, oh, ow, ph, pw, flip, pixels, boxes = fixed
        record = cls(image_id, view, (h, w), (oh, ow), (ph, pw), flip, pixels, boxes, thumbnail)
        return record, tuple(zip(sides[0::2], sides[1::2]))


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says about a batch, whether it was just computed or decoded from a cache.

    features[l] (B, C, H_l, W_l); scores[l] (B, K, H_l, W_l), sigmoid of the class logits; frs[l] (B, H_l, W_l) in
    [0, 1], the FRS map max_K(scores), zero outside a sample's own padded grid, so that nothing there enters a loss.
    `scores` is empty where a cache was made without them.
    Losses that do not weigh by the map ask `inside`.
    """

    features: list[Tensor]
    scores: list[Tensor]
    frs: list[Tensor]
    grids: tuple[LevelShapes, ...] | None = None  # each sample's own; None: all fill the canvas

    @property
    def levels(self) -> LevelShapes:
        return tuple((f.shape[-2], f.shape[-1]) for f in self.features)

    def values(self, what: str) -> list[Tensor]:
        """What the 'feature' loss or the 'score' loss compares with the student."""
        return {"feature": self.features, "score": self.scores}[what]

    def unsound(self) -> tuple[int, int] | None:
        """(sample, level) of the first NaN or infinity, if any: fp16 that overflowed, weights that diverged."""
        for level, tensors in enumerate(zip(self.features, self.scores or self.features)):
            features, scores = (t.isfinite().flatten(1).all(dim=1) for t in tensors)
            sound = features & scores
            if not bool(sound.all()):
                return int((~sound).nonzero()[0]), level
        return None

    def each(self) -> Iterator[TeacherOutput]:
        """Its samples one by one, still padded as the batch is."""
        for b in range(len(self.frs[0])):
            features, scores, frs = ([t[b : b + 1] for t in part] for part in (self.features, self.scores, self.frs))
            yield TeacherOutput(features, scores, frs, self.grids and self.grids[b : b + 1])

    def inside(self) -> list[Tensor]:
        """[(B, H_l, W_l)] bool: whether a position is of the sample's own grid."""
        masks = [m.new_ones(m.shape).bool() for m in self.frs]
        for b, grid in enumerate(self.grids or ()):
            for mask, (h, w) in zip(masks, grid):
                mask[b, h:], mask[b, :, w:] = False, False
        return masks

    def to(self, device: torch.device | str) -> TeacherOutput:
        # A copy to the host that does not block may be read before it is there.
        blocks = str(device).startswith("cpu")
        move = lambda tensors: [t.to(device, non_blocking=not blocks) for t in tensors]  # noqa: E731
        return TeacherOutput(move(self.features), move(self.scores), move(self.frs), self.grids)


@dataclass(frozen=True)
class SampleRef:
    """Where one view lies in a cache: pass, shard number, index in the shard; and what it is."""

    cache_pass: int
    shard: int
    index: int
    image_id: int
    view: int
    pad_shape: tuple[int, int]

    @property
    def landscape(self) -> bool:
        return self.pad_shape[1] >= self.pad_shape[0]


@dataclass(frozen=True)
class EncodedBatch:
    """A batch as the cache holds it: what crosses to the training device before it is decoded there.

    arrays[name] (B, ...) on the host, padded with zeros to the batch's largest sample; levels[b] the sample's own
    FPN grids.
    """

    arrays: dict[str, Tensor]
    levels: tuple[LevelShapes, ...]

    def to(self, device: torch.device | str) -> EncodedBatch:
        moved = {name: array.to(device, non_blocking=True) for name, array in self.arrays.items()}
        return EncodedBatch(moved, self.levels)


def canvas(levels: tuple[LevelShapes, ...]) -> LevelShapes:
    """The smallest grid of every level that holds that level of each sample."""
    return tuple(
        (max(sample[i][0] for sample in levels), max(sample[i][1] for sample in levels)) for i in range(len(levels[0]))
    )
