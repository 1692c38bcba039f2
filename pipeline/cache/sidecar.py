"""The sidecar of a shard: extents that cover the whole file, each with its checksum.

webdataset does not report a truncated tar, and a corrupted tar header silently hides the rest of the file. Readers
therefore use these extents, and never follow the tar's headers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.budget import BUDGET, excess
from pipeline.cache.canonical import read_json
from pipeline.cache.plausible import ROOM
from pipeline.cache.schema import SIDECAR, find_mismatch
from pipeline.cache.tar import BLOCK, END
from pipeline.errors import CorruptCache
from pipeline.storage.extents import Crc32cExtent, Extent, Sha256Extent, columns
from pipeline.storage.place import DELETE, Place, remedy
from pipeline.text import one_line

EXTENTS: dict[int, type[Crc32cExtent] | type[Sha256Extent]] = {1: Crc32cExtent, 2: Sha256Extent}  # by format version


@dataclass(frozen=True)
class Sidecar:
    """Description of one shard: the digests of its plan and codec, its extents, and the size of each array."""

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
        """All extents, in the order of the file."""
        return (self.head, *self.samples, self.tail)

    @property
    def version(self) -> int:
        """The format version of the shard, which decides the checksums."""
        return next(version for version, kind in EXTENTS.items() if isinstance(self.head, kind))

    def to_json(self) -> dict[str, Any]:
        fields = {**vars(self), "head": asdict(self.head), "tail": asdict(self.tail)}  # type: ignore[call-overload]
        fields["samples"] = [list(vars(sample).values()) for sample in self.samples]
        fields["sample_columns"] = columns(self.head)
        return fields


def load_sidecar(path: Place, sha256: str | None = None) -> Sidecar:
    """Read and check a sidecar. `sha256`: that of the manifest, if there is one.

    Raise CacheError where it is missing, CorruptCache where it was altered or its extents do not cover the shard.
    """
    return parse_sidecar(read_json(path, sha256), path)


def parse_sidecar(fields: Any, path: Place) -> Sidecar:
    """Make a sidecar from its JSON value. `path`: the file it was read from. Raise CorruptCache where it is invalid."""
    try:
        wrong = find_mismatch(fields, SIDECAR)
        if wrong is not None:
            raise ValueError(f"field {wrong or '(all)'} is missing or invalid")
        extent = extent_type(fields.pop("sample_columns"))
        fields["head"], fields["tail"] = extent(**fields["head"]), extent(**fields["tail"])
        fields["samples"] = tuple(extent(*row) for row in fields["samples"])
        sidecar = Sidecar(**fields)
        if sidecar.shard != path.with_suffix(".tar").name:
            raise ValueError(f"belongs to shard {sidecar.shard!r:.40}")
        _require_full_cover(sidecar)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCache(f"{path}: invalid sidecar ({one_line(str(error))}); {remedy(path, DELETE)}") from error
    return sidecar


def extent_type(sample_columns: Any) -> Callable[..., Extent]:
    """Return the class of the extents that have these columns. Raise ValueError where no version has them."""
    for kind in EXTENTS.values():
        if columns(kind) == sample_columns:
            return kind
    raise ValueError(f"columns {sample_columns!r:.80} are those of no format version")


def _require_full_cover(sidecar: Sidecar) -> None:
    """Raise ValueError where head, samples and tail do not cover the shard in this order, in whole blocks."""
    at = 0
    sizes = (BUDGET.head_bytes, *[BUDGET.sample_bytes + ROOM] * len(sidecar.samples), len(END))
    for extent, most in zip(sidecar.extents, sizes):
        if not extent.is_valid():
            raise ValueError(f"extent at byte {at} has a value that is not a whole number or checksum in range")
        wrong = excess(f"bytes of the extent at byte {at}", extent.size, most)
        if wrong is not None:
            raise ValueError(wrong)
        if extent.offset != at or extent.size <= 0 or extent.size % BLOCK:
            raise ValueError(f"gap or overlap between extents at byte {at}")
        at += extent.size
    if at != sidecar.size:
        raise ValueError(f"extents end at byte {at}, expected {sidecar.size}")
