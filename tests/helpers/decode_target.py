"""Decode altered samples of a cache as `verify --deep`, `export`, `report` and stage 2 do it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.reader import ShardReader
from pipeline.codecs.group import open_codec
from pipeline.codecs.packing import stack
from pipeline.tools.export import paint_components, paint_heat, paint_sum
from pipeline.tools.report.bits import count_bits
from pipeline.tools.report.sample import SampledView
from tests.helpers.mutate import alter_symbols, pack_sample, unpack_sample


class Target:
    """A cache, of which one sample is altered in each execution."""

    def __init__(self, root: Path) -> None:
        self.cache = Cache(root)
        self.codec: Any = open_codec(self.cache)
        keys = [(number, n) for number in self.cache.passes() for n in range(len(self.cache.references(number)))]
        self.readers = [self.cache.shard(*key) for key in keys]

    def __call__(self, rng: np.random.Generator, taken: Counter[str]) -> None:
        reader = self.readers[rng.integers(len(self.readers))]
        index, how = int(rng.integers(len(reader))), ("deep", "stage 2", "export", "report")[rng.integers(4)]
        taken[how] += 1
        extent = reader.sidecar.samples[index]
        arrays = unpack_sample(reader, index)
        if self.codec.name == "frs2" and rng.random() < 0.7:
            arrays = alter_symbols(self.codec, arrays, reader.levels(index), rng)
            raw = pack_sample(reader, index, arrays, rng, most=0)
        else:
            raw = pack_sample(reader, index, arrays, rng)
        forged = type(extent).of(extent.offset, raw, extent.image_id, extent.view)
        samples = (*reader.sidecar.samples[:index], forged, *reader.sidecar.samples[index + 1 :])
        altered = _Altered(reader, samples, {extent.offset: raw})
        getattr(self, how.replace(" ", "_"))(altered, index)
        taken[f"decoded by {how}"] += 1

    def deep(self, reader: ShardReader, index: int) -> None:
        self._decode(reader, [index])

    def stage_2(self, reader: ShardReader, index: int) -> None:
        self._decode(reader, [index, *(n for n in range(len(reader)) if n != index)])

    def _decode(self, reader: ShardReader, indices: list[int]) -> Any:
        views = [reader.view(n, self.codec) for n in indices]
        output = self.codec.decode(stack([arrays for _, _, arrays in views], [levels for _, levels, _ in views]))
        assert all(torch.isfinite(t).all() for t in (*output.features, *output.scores, *output.frs))
        return output

    def export(self, reader: ShardReader, index: int) -> None:
        output = self._decode(reader, [index])
        tensors = ((output.features, paint_components), (output.scores, paint_sum), (output.frs, paint_heat))
        for levels, paint in tensors:
            assert all(paint(level[0].numpy()).dtype == np.uint8 for level in levels)

    def report(self, reader: ShardReader, index: int) -> None:
        _, levels, arrays = reader.view(index, self.codec)
        sizes = {name: len(chunk) for name, chunk in reader.chunks(index).items()}
        bits = count_bits(self.codec, [SampledView(arrays, levels, sizes)])
        assert all(np.isfinite(row).all() for part in (bits.by_level, bits.by_tenth) for row in part.values())
        self._decode(reader, [index])


class _Altered(ShardReader):
    """A reader with another sidecar, and other bytes for some extents."""

    def __init__(self, reader: ShardReader, samples: Any, altered: dict[int, bytes]) -> None:
        self.__dict__ |= reader.__dict__
        self.sidecar = type(reader.sidecar)(**{**vars(reader.sidecar), "samples": samples})
        self._altered = altered

    def _bytes(self, extent: Any, what: str, fetched: Any = None) -> bytes:
        return self._altered.get(extent.offset) or super()._bytes(extent, what)
