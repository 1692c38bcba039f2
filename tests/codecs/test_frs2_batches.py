"""frs2 decodes a batch as a whole: in a bounded number of operations, and to the bits that each sample has alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.launches import counts
from pipeline.codecs.frs.canvas import Canvas
from pipeline.codecs.frs2.codec import Frs2
from pipeline.codecs.frs2.inputs import MapInputs, enlarge, inside
from pipeline.codecs.frs2.levels import LevelPredictor
from pipeline.codecs.frs2.mosaic import Mosaic
from pipeline.codecs.frs2.predict_levels import TAPS
from pipeline.codecs.packing import stack
from pipeline.records import EncodedBatch, LevelShapes
from tests.helpers.related import RelatedSample, related_codec, related_output, short_training

MOST = 300  # operations that a GPU would be given
CHANNELS, CLASSES = 8, 90
FIVE = [(24, 36), (12, 18), (6, 9), (3, 5), (2, 3)]
VIEWS = [
    FIVE,
    [(13, 21), (7, 11), (4, 6), (2, 3), (1, 2)],
    [(9, 40), (5, 20), (3, 10), (2, 5), (1, 3)],
    [(24, 17), (9, 9), (3, 4), (1, 1), (1, 1)],  # less than half of the next finer level
]
ALL_USED, MIXED = [3, 3, 3, 3, 2], [2, 1, 0, 3, 0]  # flags: 1 for the level's prediction, 2 for that of the scores


@pytest.fixture(scope="module", params=["frs", "universal"])
def codec(request: pytest.FixtureRequest) -> Iterator[Frs2]:
    with short_training(2):
        made = related_codec(RelatedSample(CHANNELS, CLASSES, FIVE, 4), profile=request.param)
    assert isinstance(made, Frs2) and {"level_in", "net_output"} <= made.tables.keys()
    yield made


@pytest.fixture(scope="module")
def samples(codec: Frs2) -> list[tuple[dict, LevelShapes]]:
    """Samples of different grids. Their flags are replaced: any sample can use any prediction."""
    outputs = [related_output(1, sizes, CHANNELS, CLASSES, n) for n, sizes in enumerate(VIEWS)]
    return [(codec.read_sample(codec.encode(output)[0][0], output.levels), output.levels) for output in outputs]


def batch_of(samples: Sequence[tuple[dict, LevelShapes]], *flags: list[int]) -> EncodedBatch:
    batch = stack([sample for sample, _ in samples], [levels for _, levels in samples])
    batch.arrays["frs"][:, : len(FIVE)] = torch.tensor(flags, dtype=torch.uint8)
    return batch


@pytest.mark.parametrize("flags", [ALL_USED, MIXED])
def test_operations_do_not_grow_with_the_batch(codec: Frs2, samples: list, flags: list[int]) -> None:
    found = []
    for size in (1, 2, 8):
        batch = batch_of((samples * 2)[:size], flags)
        codec.decode(batch)  # constants reach a device once
        found.append(counts(lambda batch=batch: codec.decode(batch), torch.device("cpu"))["operations"])

    assert len(set(found)) == 1 and 100 < found[0] <= MOST


def test_a_sample_has_the_same_bits_alone_and_in_a_batch(codec: Frs2, samples: list) -> None:
    flags = [ALL_USED, MIXED, [3, 0, 3, 0, 2], [0] * 5]

    together = codec.decode(batch_of(samples, *flags))

    for number, (sample, own) in enumerate(zip(samples, flags, strict=True)):
        alone = codec.decode(batch_of([sample], own))
        for name in ("features", "scores", "frs"):
            for a, b, (h, w) in zip(getattr(together, name), getattr(alone, name), sample[1], strict=True):
                assert torch.equal(a[number, ..., :h, :w], b[0, ..., :h, :w])


def test_flags_decide_what_is_predicted(codec: Frs2, samples: list) -> None:
    """Only levels with the flag change, and those that are predicted from them."""
    (sample, levels), *_ = samples
    none, finest, scores = (codec.decode(batch_of([(sample, levels)], [n, 0, 0, 0, 0])) for n in (0, 1, 2))

    for n, (a, b, c) in enumerate(zip(none.features, finest.features, scores.features)):
        assert torch.equal(a, b) == (n > 0) and torch.equal(a, c)
    for n, (a, c) in enumerate(zip(none.scores, scores.scores)):
        assert torch.equal(a, c) == (n > 0)


def mosaic_of(*views: list[tuple[int, int]]) -> tuple[Canvas, Mosaic]:
    own = tuple(tuple(sizes) for sizes in views)
    canvas = Canvas(own, torch.tensor(own))
    return canvas, Mosaic(canvas, 3)


@pytest.mark.parametrize("views", [VIEWS, [FIVE], [[(1, 1)]], [[(2, 3), (9, 8)], [(8, 1), (1, 30)]]])
def test_a_convolution_sees_each_level_of_each_sample_alone(views: list) -> None:
    canvas, mosaic = mosaic_of(*views)
    packed, kernel = torch.randn(len(views), len(canvas.level), 3), torch.randn(2, 3, 3, 3)

    plane = mosaic.spread(packed)
    found = canvas.split_channels(mosaic.gather(F.conv2d(plane, kernel, padding=1)))

    assert plane.shape[0] * plane[0].numel() > 20480 or len(views) > 1  # so that torch has one algorithm
    for level, (x, y) in enumerate(zip(canvas.split_channels(packed), found)):
        for sample, sizes in enumerate(views):
            h, w = sizes[level]
            wanted = F.conv2d(x[sample, :, :h, :w], kernel, padding=1)
            assert torch.allclose(y[sample, :, :h, :w], wanted, rtol=1e-5, atol=1e-5)


def test_a_mosaic_keeps_positions_apart() -> None:
    canvas, mosaic = mosaic_of(*VIEWS)
    cells = mosaic.cell

    assert len(cells.unique()) == len(cells) and int(cells.max()) < mosaic.height * mosaic.width
    assert torch.equal(mosaic.position[cells], torch.arange(len(cells)))
    packed = torch.randn(len(VIEWS), len(cells), 2)
    assert torch.equal(mosaic.gather(mosaic.spread(packed)), packed * canvas.inside[..., None])


NARROW = [(100, 4), (50, 2), (25, 1), (13, 1), (7, 1)]  # the last level ends in the mosaic's last row and column


@pytest.mark.parametrize("views", [[NARROW], [[(4, 72), (2, 36)]], [[(99, 80)]], [FIVE, NARROW]])
def test_each_position_has_the_neighbours_of_its_level(views: list) -> None:
    own = tuple(map(tuple, views))
    canvas = Canvas(own, torch.tensor(own))
    neighbours, count = Mosaic(canvas, 33).neighbours, len(canvas.level)

    first = 0
    for (h, w), found in zip(canvas.padded, canvas.planes(neighbours[None])):
        numbers = F.pad(torch.arange(first, first + h * w).view(1, 1, h, w), (1, 1, 1, 1), value=count)
        assert torch.equal(found[0], numbers[0, 0].unfold(0, 3, 1).unfold(1, 3, 1).flatten(2))
        first += h * w


def test_a_narrow_view_is_stored(codec: Frs2) -> None:
    exact = related_output(1, [(60, 4)] * 5, CHANNELS, CLASSES, 3)
    sample = codec.read_sample(codec.encode(exact)[0][0], exact.levels)
    assert max(codec.compare(exact, stack([sample], [exact.levels])).values()) <= 1.001


@pytest.mark.parametrize("view", VIEWS)
def test_levels_are_predicted_as_the_formula_says(codec: Frs2, view: list) -> None:
    """p = enlarge(W r + N * (P r)) + V * map + b, of each sample on its own grid."""
    transform, exact = codec.transform, related_output(1, view, CHANNELS, CLASSES, 9)
    maps, table = transform.code_maps(exact), transform.tables_on(torch.device("cpu"))
    predictor = transform.level_predictor(maps)
    assert isinstance(predictor, LevelPredictor)
    inputs = MapInputs(maps, TAPS).levels()

    for level in range(len(view) - 1):
        r = torch.randn(1, CHANNELS, *view[level + 1])
        reduced = product(table("level_reduce")[level], r) * inside(maps, level + 1)
        through = product(table("level_in")[level], r) + F.conv2d(reduced, table("level_near")[level], padding=1)
        wanted = enlarge(product(table("level_out")[level], through), [view[level + 1]], view[level])
        wanted = wanted + F.conv2d(inputs[level], table("level_map")[level].view(-1, 2, 3, 3), padding=1)
        wanted = wanted + table("level_bias")[level][:, None, None]
        found = transform.predict_features(level, r, maps, predictor)
        assert found is not None
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def product(weight: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("yx,bxhw->byhw", weight, x)
