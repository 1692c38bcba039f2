"""What `cache.codec` of a config may say to any codec. Imports no torch.

Options are read from the config, a calibration is what was found on the teacher's views. Both together are the
`settings` of codec.json; their names and their order there are part of the format.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

from pipeline.fields import key_of

KINDS = ("feature", "score")  # the tensors that a codec stores beside the richness map


@dataclass(frozen=True)
class CodecOptions:
    """`zstd_level`: 1 to 9, Blosc's scale. `scores`: False leaves out the class scores."""

    type: ClassVar[str]

    zstd_level: int = field(default=1, metadata={"at_least": 1, "at_most": 9, "key": "zstd"})
    scores: bool = True

    @property
    def kinds(self) -> tuple[str, ...]:
        """The tensors of KINDS that the cache holds."""
        return KINDS if self.scores else KINDS[:1]

    def to_json(self) -> dict[str, Any]:
        """Return the options as recipe and codec.json hold them; `scores` only if False, as in the oldest caches."""
        values = to_json(self)
        if self.scores:
            del values["scores"]
        return {**values, "type": self.type}


class Calibration(Protocol):
    """What calibration found, a frozen dataclass. `score_channels`: 0 without class scores."""

    @property
    def channels(self) -> int: ...

    @property
    def score_channels(self) -> int: ...


def to_json(values: Any) -> dict[str, Any]:
    """Return a settings dataclass under the names of the file, without the fields that are None."""
    found = {key_of(one): getattr(values, one.name) for one in fields(values)}
    return {key: value for key, value in found.items() if value is not None}
