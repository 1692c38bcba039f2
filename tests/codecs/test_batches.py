"""A batch is decoded as a whole: in a bounded number of operations, and to the values that each sample has alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.codecs.base import Codec
from pipeline.codecs.packing import stack
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.records import EncodedBatch, LevelShapes
from tests.helpers.outputs import RandomSample, calibrated_codec, random_output

MOST = 300  # operations that a GPU would be given
FIVE = [(24, 36), (12, 18), (6, 9), (3, 5), (2, 3)]


class Launches(TorchDispatchMode):
    """Counts the operations that compute; views of tensors cost nothing on a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module", params=["frs", "universal"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return calibrated_codec("frs", profile=request.param)


def coded(codec: Codec, grids: list[list[tuple[int, int]]]) -> tuple[list[dict[str, Any]], list[LevelShapes]]:
    """One sample of each of these grids."""
    outputs = [random_output(1, sizes, codec.channels, codec.score_channels, n) for n, sizes in enumerate(grids)]
    return [codec.encode(output)[0][0] for output in outputs], [output.levels for output in outputs]


def batch_of(parts: tuple[list[dict[str, Any]], list[LevelShapes]], *numbers: int) -> EncodedBatch:
    samples, levels = parts
    return stack([samples[n] for n in numbers], [levels[n] for n in numbers])


def test_a_sample_has_the_same_bits_alone_and_in_a_batch(codec: Codec) -> None:
    parts = coded(codec, [[(16, 24), (8, 12)], [(5, 30), (3, 15)], [(13, 7), (7, 4)], [(16, 23), (8, 12)]])
    together = codec.decode(batch_of(parts, 0, 1, 2, 3))
    for number, levels in enumerate(parts[1]):
        alone = codec.decode(batch_of(parts, number))
        for name in ("features", "scores", "frs"):
            for a, b, (h, w) in zip(getattr(together, name), getattr(alone, name), levels, strict=True):
                assert torch.equal(a[number, ..., :h, :w], b[0])


def test_the_encoder_does_not_depend_on_the_batch(codec: Codec) -> None:
    output = random_output(3, [(13, 24), (7, 12)], codec.channels, codec.score_channels, 5)
    together = codec.encode(output)[0]
    for number, one in enumerate(output.each()):
        alone = codec.encode(one)[0][0]
        for name, array in together[number].items():
            assert array.tobytes() == alone[name].tobytes()


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_launches_do_not_grow_with_the_batch(batch: int) -> None:
    codec = calibrate_codec(read_options({"type": "frs"}), RandomSample(8, 6, FIVE))
    sizes = [[(24 - n, 36), *FIVE[1:]] for n in range(batch)]
    found = batch_of(coded(codec, sizes), *range(batch))
    codec.decode(found)  # constants reach a device once
    with Launches() as launches:
        codec.decode(found)
    assert 100 < launches.count <= MOST
