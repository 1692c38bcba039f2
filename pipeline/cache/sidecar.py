"""The sidecar of a shard: extents that tile the whole file, each with its crc32c.

A truncated tar is silent in webdataset and a flipped header loses the rest of a shard silently, so readers trust
these extents and never tar's own chain of headers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.cache.files import read_json
from pipeline.cache.place import Place
from pipeline.errors import CorruptCache


@dataclass(frozen=True)
class Extent:
    """`size` bytes at `offset` of a shard. `image_id` and `view` are those of a sample, -1 in head and tail."""

    offset: int
    size: int
    crc32c: int
    image_id: int = -1
    view: int = -1


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
    fields = read_json(path, sha256)
    try:
        fields.pop("sample_columns")
        fields["head"], fields["tail"] = Extent(**fields["head"]), Extent(**fields["tail"])
        fields["samples"] = tuple(Extent(*row) for row in fields["samples"])
        sidecar = Sidecar(**fields)
        at = 0
        for extent in sidecar.extents:
            if extent.offset != at or extent.size <= 0:
                raise ValueError(f"extents leave a gap at byte {at}")
            at += extent.size
        if at != sidecar.size:
            raise ValueError(f"extents end at {at}, the shard at {sidecar.size}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCache(f"{path}: not a sidecar ({error}); delete it and run stage 1 again") from error
    return sidecar
