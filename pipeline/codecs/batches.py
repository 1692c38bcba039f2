"""Check stored views before they are decoded together."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.cache.reader import ShardReader
from pipeline.codecs.base import Codec
from pipeline.errors import CorruptCache


def require_affordable_batch(reader: ShardReader, indices: Iterable[int], codec: Codec) -> None:
    """Raise CorruptCache where the views of a planned batch are too large to be decoded together."""
    try:
        codec.require_affordable([reader.levels(index) for index in indices])
    except ValueError as error:
        raise CorruptCache(f"{reader.path}: {error}; the batches of its pass's plan.json are too large") from error
