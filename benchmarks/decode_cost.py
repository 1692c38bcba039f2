"""What it costs to decode a codec's samples: bytes to tokens on the CPU's side, and tokens to tensors on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import launches
from benchmarks.ans import cpu_ms
from benchmarks.measure import decode_items
from pipeline.cache.version2 import encode_sample
from pipeline.codecs.base import Codec
from pipeline.codecs.packing import positions, stack
from pipeline.teacher.model import Teacher

TOKEN = 4  # bytes


def cost(codec: Codec, teacher: Teacher, views: Sequence[Tensor], rounds: int = 3) -> dict[str, float]:
    """Return tokens, CPU milliseconds and work of decoding views as one batch. Times are the least of several rounds.

    `read_ms`: to decompress, check and entropy-decode a view. `decode_ms`: to make a view's tensors, without a GPU.
    `operations`: of a batch, whatever its size. `kmac_position`: multiply-adds a position, in thousands.
    """
    outputs = [output for view in views for output in teacher([view]).each()]
    items = [encode_sample(codec.items(), codec.encode(output)[0][0]) for output in outputs]
    grids = [output.levels for output in outputs]

    def read() -> list[Any]:
        return [decode_items(codec, coded, levels) for coded, levels in zip(items, grids)]

    samples = read()
    batch = stack(samples, grids)
    with FlopCounterMode(display=False) as counter:
        codec.decode(batch)
    tokens = sum(sample[name].nbytes for sample in samples for name in ("features", "scores") if name in sample)
    return {
        "tokens": tokens / TOKEN / len(samples),
        "read_ms": cpu_ms(read, 3 * rounds) / len(samples),
        "decode_ms": cpu_ms(lambda: codec.decode(batch), rounds) / len(samples),
        "operations": launches.counts(lambda: codec.decode(batch), torch.device("cpu"))["operations"] or 0,
        "kmac_position": counter.get_total_flops() / 2e3 / sum(map(positions, grids)),
    }
