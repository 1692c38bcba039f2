"""Lists of samples as columns of numbers: the shards of a pass, or the batches of an epoch.

A SampleRef takes 250 bytes of memory, a row of the columns 32, and workers share the columns of a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pipeline.data.mapped import MappedArrays, share_arrays
from pipeline.records import SampleRef

COLUMNS = {
    "pass": "<i4",
    "shard": "<i4",
    "index": "<i4",
    "image": "<i8",
    "view": "<i4",
    "height": "<i4",
    "width": "<i4",
}


class SampleTable:
    """A sequence of lists of samples. The lists are made when they are read."""

    def __init__(self, lists: Iterable[Iterable[SampleRef]], shared: bool = False) -> None:
        """Store the samples of `lists`. `shared`: in a file that worker processes map."""
        ends, rows = [], list[tuple[int, ...]]()
        for samples in lists:
            rows += [(r.cache_pass, r.shard, r.index, r.image_id, r.view, *r.pad_shape) for r in samples]
            ends.append(len(rows))
        given = zip(*rows) if rows else [()] * len(COLUMNS)
        columns = {name: np.array(values, COLUMNS[name]) for name, values in zip(COLUMNS, given)}
        columns["ends"] = np.array(ends, np.int64)
        self._columns: Mapping[str, np.ndarray] | MappedArrays = share_arrays(columns) if shared else columns

    def __len__(self) -> int:
        return len(self._columns["ends"])

    def __getitem__(self, number: int) -> list[SampleRef]:
        ends = self._columns["ends"]
        if not 0 <= number < len(ends):
            raise IndexError(number)
        part = slice(int(ends[number - 1]) if number else 0, int(ends[number]))
        rows = zip(*(self._columns[name][part].tolist() for name in COLUMNS))
        return [SampleRef(n, shard, index, image, view, (h, w)) for n, shard, index, image, view, h, w in rows]

    def __iter__(self) -> Iterator[list[SampleRef]]:
        return (self[number] for number in range(len(self)))
