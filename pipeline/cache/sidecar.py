"""The sidecar of a shard: extents that tile the whole file, each with its crc32c.

A truncated tar is silent in webdataset and a flipped header loses the rest of a shard silently, so readers trust
these extents and never tar's own chain of headers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.cache.canonical import read_json
from pipeline.cache.tar import BLOCK
from pipeline.errors import CorruptCache
from pipeline.storage.base import Extent
from pipeline.storage.place import DELETE, Place, remedy


@dataclass(frozen=True)
class Sidecar:
    """What is known of one shard: digests it belongs to, where its bytes are, what they hold."""

    shard: str
    plan: str
    codec: str
    size: int
    sha256: str
    head: Extent
    samples: tuple[Extent, ...]
    tail: Extent
    bytes_by_array: dict[str, int]
    measured: dict[str, float]

    @property
    def extents(self) -> tuple[Extent, ...]:
        """All of them, in the order of the file."""
        return (self.head, *self.samples, self.tail)

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        fields["samples"] = [list(asdict(sample).values()) for sample in self.samples]
        fields["sample_columns"] = list(Extent.__dataclass_fields__)
        return fields


def load_sidecar(path: Place, sha256: str | None = None) -> Sidecar:
    """Read and check a sidecar. Raises CacheError (missing) or CorruptCache (altered, or extents do not tile).

    `sha256`: of the file, where a manifest gives it.
    """
    return parse_sidecar(read_json(path, sha256), path)


def parse_sidecar(fields: Any, path: Place) -> Sidecar:
    """A sidecar from its JSON value; `path`: where it was read. Raises CorruptCache."""
    try:
        columns = fields.pop("sample_columns")
        fields["head"], fields["tail"] = Extent(**fields["head"]), Extent(**fields["tail"])
        fields["samples"] = tuple(Extent(*row) for row in fields["samples"])
        sidecar = Sidecar(**fields)
        if columns != list(Extent.__dataclass_fields__) or sidecar.shard != path.with_suffix(".tar").name:
            raise ValueError(f"it is that of {sidecar.shard!r:.40}")
        if not all(isinstance(text, str) for text in (sidecar.plan, sidecar.codec, sidecar.sha256)):
            raise ValueError("a digest is none")
        for numbers, kinds in ((sidecar.bytes_by_array, int), (sidecar.measured, (int, float))):
            if not all(isinstance(number, kinds) for number in numbers.values()):
                raise ValueError("a number is none")
        _require_tiles(sidecar)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCache(f"{path}: not a sidecar ({error}); {remedy(path, DELETE)}") from error
    return sidecar


def _require_tiles(sidecar: Sidecar) -> None:
    """Head, samples and tail cover the shard in this order, in whole blocks. Raises ValueError."""
    at = 0
    for extent in sidecar.extents:
        if any(type(number) is not int for number in vars(extent).values()) or not 0 <= extent.crc32c < 1 << 32:
            raise ValueError(f"the extent at byte {at} is not one of whole numbers")
        if extent.offset != at or extent.size <= 0 or extent.size % BLOCK:
            raise ValueError(f"extents leave a gap at byte {at}")
        at += extent.size
    if at != sidecar.size:
        raise ValueError(f"extents end at {at}, the shard at {sidecar.size}")
