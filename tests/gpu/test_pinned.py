"""A batch of the cache in page-locked memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import load_config
from pipeline.data.stream import LoaderOptions, Stream, stream_loader
from pipeline.stage2.teacher_data import prepare_teacher_data

pytestmark = pytest.mark.gpu


def test_all_tensors_of_a_batch_are_pinned(made: dict[str, Path], device: torch.device) -> None:
    cfg, sections = load_config(str(made["frs"]))
    stream = Stream(prepare_teacher_data(cfg, sections).stream, 4, seed=1)
    pinned, plain = (list(stream_loader(stream, LoaderOptions(1, pin_memory=on))) for on in (True, False))
    for one, other in zip(pinned, plain, strict=True):
        tensors = [*one["inputs"], *one["teacher"].arrays.values()]
        assert all(tensor.is_pinned() == (device.type == "cuda") for tensor in tensors)
        there = one["teacher"].to(device)
        for name, array in other["teacher"].arrays.items():
            assert torch.equal(there.arrays[name].cpu(), array)
