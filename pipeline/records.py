"""Plain data that all packages share.

Shapes: B batch, L FPN levels, C channels, K score channels, (H_l, W_l) grid of level l.
A record does not depend on its source, a live teacher or a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # importing torch takes 2 s, opening a cache 0.1 s
    import torch
    from torch import Tensor

FLIPS = ("none", "horizontal", "vertical", "diagonal")
THUMBNAIL = 8  # side of the thumbnail in pixels: 192 bytes, enough to detect a flip or another image
RECORD_COLUMNS = (
    *("image_id", "view"),
    *("height", "width", "ori_height", "ori_width", "pad_height", "pad_width"),
    *("flip", "pixels_crc32c", "boxes_crc32c"),
)

LevelShapes = tuple[tuple[int, int], ...]  # ((H_0, W_0), ..., (H_{L-1}, W_{L-1}))


def record_columns(levels: int) -> list[str]:
    """Return the names of the columns of `ViewRecord.row` for this number of FPN levels."""
    return [*RECORD_COLUMNS, *(f"level{n}_{side}" for n in range(levels) for side in ("height", "width"))]


@dataclass(frozen=True)
class ViewRecord:
    """Fingerprint of a view, used to verify a replayed view.

    Sizes are (height, width) in pixels: `shape` of the view, `ori_shape` of the image file, `pad_shape` of the view
    after padding, without the batch. `flip` is an index of FLIPS. `pixels` is the crc32c of the packed view's bytes
    (C, H, W), `boxes` that of its float32 boxes and their labels. `thumbnail` is (8, 8, 3) uint8.
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
        """Return the record as (11 + 2L,) int64: RECORD_COLUMNS, then the height and width of every FPN level."""
        numbers = [self.image_id, self.view, *self.shape, *self.ori_shape, *self.pad_shape]
        numbers += [self.flip, self.pixels, self.boxes]
        return np.array(numbers + [side for level in levels for side in level], dtype=np.int64)

    @classmethod
    def from_row(cls, row: np.ndarray, thumbnail: np.ndarray) -> tuple[ViewRecord, LevelShapes]:
        """Return the record and FPN grids of a row. Inverse of `row`."""
        n = [int(x) for x in row]
        fixed, sides = n[: len(RECORD_COLUMNS)], n[len(RECORD_COLUMNS) :]
        image_id, view, h, w, oh, ow, ph, pw, flip, pixels, boxes = fixed
        record = cls(image_id, view, (h, w), (oh, ow), (ph, pw), flip, pixels, boxes, thumbnail)
        return record, tuple(zip(sides[0::2], sides[1::2]))


@dataclass(frozen=True)
class TeacherOutput:
    """The teacher's output for a batch, either computed now or decoded from a cache.

    features[l]: (B, C, H_l, W_l).
    scores[l]: (B, K, H_l, W_l), sigmoid of the class logits. Empty if the cache was made without scores.
    frs[l]: (B, H_l, W_l) in [0, 1], the FRS map max_K(scores). It is 0 outside a sample's own grid, so these positions
    do not enter a loss. Losses that are not weighted by the map use `inside`.
    boxes[l]: (B, 4 N, H_l, W_l), logits of box distributions. Empty unless they are requested.
    grids: each sample's own FPN grids; None if every sample fills the batch's grids.
    """

    features: list[Tensor]
    scores: list[Tensor]
    frs: list[Tensor]
    grids: tuple[LevelShapes, ...] | None = None
    boxes: list[Tensor] = field(default_factory=list)

    @property
    def levels(self) -> LevelShapes:
        return tuple((f.shape[-2], f.shape[-1]) for f in self.features)

    def values(self, what: str) -> list[Tensor]:
        """Return the tensors that a 'feature', 'score' or 'box' loss compares with the student's."""
        return {"feature": self.features, "score": self.scores, "box": self.boxes}[what]

    def unsound(self) -> tuple[int, int] | None:
        """Return (sample, level) of the first NaN or infinity; None if there is none."""
        if not extremes((*self.features, *self.scores, *self.boxes)).isfinite().all():
            return self._find_unsound()
        return None

    def _find_unsound(self) -> tuple[int, int] | None:
        for level, tensors in enumerate(zip(*filter(None, (self.features, self.scores, self.boxes)))):
            sound = reduce(and_, (t.isfinite().flatten(1).all(dim=1) for t in tensors))
            if not bool(sound.all()):
                return int((~sound).nonzero()[0]), level
        return None

    def each(self) -> Iterator[TeacherOutput]:
        """Yield the samples one by one, each with the batch's padding."""
        for b in range(len(self.frs[0])):
            parts = (self.features, self.scores, self.frs, self.boxes)
            features, scores, frs, boxes = ([t[b : b + 1] for t in part] for part in parts)
            yield TeacherOutput(features, scores, frs, self.grids and self.grids[b : b + 1], boxes)

    def inside(self) -> list[Tensor]:
        """Return [(B, H_l, W_l)] bool: whether a position is in the sample's own grid."""
        masks = [m.new_ones(m.shape).bool() for m in self.frs]
        for b, grid in enumerate(self.grids or ()):
            for mask, (h, w) in zip(masks, grid):
                mask[b, h:], mask[b, :, w:] = False, False
        return masks

    def to(self, device: torch.device | str) -> TeacherOutput:
        # A non-blocking copy to the host could be read before it is complete.
        blocking = str(device).startswith("cpu")
        features, scores, frs, boxes = (
            [t.to(device, non_blocking=not blocking) for t in tensors]
            for tensors in (self.features, self.scores, self.frs, self.boxes)
        )
        return TeacherOutput(features, scores, frs, self.grids, boxes)


def extremes(tensors: Sequence[Tensor]) -> Tensor:
    """Return the smallest and the largest value of each tensor, (n, 2); NaN where it has a NaN.

    This takes a tenth of the time of `isfinite` on a CPU, and a GPU is waited for once.
    """
    import torch

    return torch.stack([end for tensor in tensors for end in (tensor.amin(), tensor.amax())]).unflatten(0, (-1, 2))


@dataclass(frozen=True, slots=True)
class SampleRef:
    """The position of one view in a cache (pass, shard number, index in the shard), and its identity."""

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
    """A batch as it is stored in the cache. It is copied to the training device and decoded there.

    arrays[name]: (B, ...), padded with zeros to the batch's largest sample. levels[b]: the sample's own FPN grids.
    sides: the same (height, width) as (B, L, 2) int64, so that they reach the device with the arrays.
    """

    arrays: dict[str, Tensor]
    levels: tuple[LevelShapes, ...]
    sides: Tensor

    def to(self, device: torch.device | str) -> EncodedBatch:
        moved = {name: array.to(device, non_blocking=True) for name, array in self.arrays.items()}
        return EncodedBatch(moved, self.levels, self.sides.to(device, non_blocking=True))

    def pin_memory(self) -> EncodedBatch:
        """Return the batch in page-locked memory, from which a GPU copies faster. torch's DataLoader calls this."""
        import torch

        if not torch.cuda.is_available():
            return self
        arrays = {name: array.pin_memory() for name, array in self.arrays.items()}
        return EncodedBatch(arrays, self.levels, self.sides.pin_memory())


def canvas(levels: tuple[LevelShapes, ...]) -> LevelShapes:
    """Return the smallest grid of every level that contains the grids of all samples."""
    return tuple(
        (max(sample[i][0] for sample in levels), max(sample[i][1] for sample in levels)) for i in range(len(levels[0]))
    )
