"""Small caches of the four families, made on the device once and shared by the tests here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.conftest import detector, make_config, make_dataset, save_teacher, stage1

IMAGES = 8


class Cached(NamedTuple):
    """A config whose cache is complete, and the summary of stage 1."""

    config: Path
    summary: dict[str, Any]


@contextmanager
def used(device: torch.device) -> Iterator[None]:
    """Fail unless code inside allocates memory on the device, where that is a GPU."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    yield
    if device.type == "cuda":
        assert torch.cuda.max_memory_allocated(device) > before


@pytest.fixture(scope="session")
def cached(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Cached]:
    """(family, codec) -> its cache."""
    data = make_dataset(tmp_path_factory.mktemp("coco"), IMAGES)
    teacher_of = cache(lambda family: save_teacher(tmp_path_factory.mktemp(family), detector(family)))

    @cache
    def make(family: str, codec: str) -> Cached:
        work = tmp_path_factory.mktemp(f"{family}-{codec}")
        sizes = {"cache.calibration_views": 4, "teacher.gate_images": 1}
        config = make_config(data, teacher_of(family), detector(family), work, codec, **sizes)
        with used(device):
            return Cached(config, stage1(config))

    return make
