"""The settings that all codecs share. Does not import torch.

Options are read from `cache.codec` of the config. A calibration is measured on the teacher's views. Together they are
the `settings` of codec.json. Their names and order are part of the format.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

from pipeline.fields import key_of

KINDS = ("feature", "score")  # the tensors that a codec stores, apart from the richness map


@dataclass(frozen=True)
class CodecOptions:
    """`zstd_level`: 1 to 9, on Blosc's scale. `scores`: False leaves out the class scores.

    `boxes`: True also stores the box distributions of a GFL teacher, for LD. `fitted`: whether a calibration chooses
    steps for a requested error.
    """

    type: ClassVar[str]
    fitted: ClassVar[bool] = False

    zstd_level: int = field(default=1, metadata={"at_least": 1, "at_most": 9, "key": "zstd"})
    scores: bool = True
    boxes: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The tensors of KINDS that the cache contains."""
        return KINDS if self.scores else KINDS[:1]

    def to_json(self) -> dict[str, Any]:
        """Return the options for recipe and codec.json. Those of the oldest caches have no `scores` and no `boxes`."""
        usual = {"scores": True, "boxes": False}
        values = {key: value for key, value in to_json(self).items() if usual.get(key) is not value}
        return {**values, "type": self.type}


class Calibration(Protocol):
    """Results of a calibration, a frozen dataclass.

    `channels`: of the widest level. `score_channels`: 0 without class scores. `level_channels`: of every level; None
    if they are equal. `box_channels`: 4 N of box distributions with N bins a side; None without them.
    """

    @property
    def channels(self) -> int: ...

    @property
    def score_channels(self) -> int: ...

    @property
    def level_channels(self) -> list[int] | None: ...

    @property
    def box_channels(self) -> int | None: ...


def check_widths(value: Any) -> str | None:
    """Return the expected values if `level_channels` is not a list of numbers above 0."""
    sound = len(value) > 0 and all(type(one) is int and one > 0 for one in value)
    return None if sound else "a list of whole numbers above 0"


def to_json(values: Any) -> dict[str, Any]:
    """Return a settings dataclass as a dict with the names of the file, without the fields that are None."""
    found = {key_of(one): getattr(values, one.name) for one in fields(values)}
    return {key: value for key, value in found.items() if value is not None}
