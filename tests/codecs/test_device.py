"""Decoding and the losses run on the training device alone: no tensor elsewhere, no value asked of the device.

They run on torch's `meta` device, whose tensors have no values. A GPU would have to be waited for wherever this fails.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.codecs.base import Codec
from pipeline.codecs.packing import stack
from pipeline.losses.frs import SCORE
from pipeline.losses.registry import feature_losses
from pipeline.records import EncodedBatch, TeacherOutput, canvas
from tests.helpers.boxed import BoxedSample
from tests.helpers.outputs import calibrated_codec, random_output
from tests.helpers.related import RelatedSample, related_codec, short_training

META = torch.device("meta")
FIRST = [(16, 24), (8, 12)], [(24, 16), (12, 8)]  # FPN grids of each sample of a batch
SECOND = [(9, 24), (5, 12)], [(16, 7), (8, 4)], [(16, 24), (8, 12)]
CODECS = {
    "frs": {},
    "universal": {"profile": "universal"},
    "no scores": {"scores": False},
    "frs2": {},
    "boxes": {},
    "lossless": {},
}


class OneDevice(TorchDispatchMode):
    """Fails on every operation that gives a tensor of another device. Values are refused by `meta` itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device != META:
                raise AssertionError(f"{func} gives a tensor on {leaf.device}")
        return result


@pytest.fixture(scope="module", params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    if request.param == "frs2":
        with short_training(5):
            return related_codec(RelatedSample(sizes=[(16, 24), (8, 12)]))
    if request.param == "boxes":
        return related_codec(BoxedSample(), type="frs", boxes=True)
    kind = "lossless" if request.param == "lossless" else "frs"
    return calibrated_codec(kind, **CODECS[request.param])


def encoded(codec: Codec, sizes: Any, scale: float) -> EncodedBatch:
    """A batch of samples of these grids; `scale` of the maps gives them other exponents."""
    samples, levels = [], []
    for seed, grids in enumerate(sizes):
        exact = random_output(1, grids, 8, 6, seed)
        boxes = [torch.ones(1, codec.box_channels, *grid) for grid in grids] if codec.box_channels else []
        weaker = TeacherOutput(exact.features, exact.scores, [m * scale for m in exact.frs], boxes=boxes)
        samples += [codec.read_sample(sample, exact.levels) for sample in codec.encode(weaker)[0]]
        levels.append(exact.levels)
    return stack(samples, levels)


def decoded(codec: Codec, batch: EncodedBatch) -> TeacherOutput:
    """Decode on `meta`, every operation watched."""
    moved = batch.to(META)
    with OneDevice():
        return codec.decode(moved)


def test_decoding_stays_on_its_device(codec: Codec) -> None:
    codec.decode(encoded(codec, FIRST, 1.0).to(META))  # constants reach a device once
    batch = encoded(codec, SECOND, 1e-3)  # other grids, other exponents: nothing else may follow them
    found, wanted = decoded(codec, batch), codec.decode(batch)
    assert found.grids == batch.levels
    assert len(found.boxes) == len(wanted.boxes) == (2 if codec.box_channels else 0)
    parts = ("features", "scores", "frs", "boxes")
    for a, b in (pair for part in parts for pair in zip(getattr(found, part), getattr(wanted, part), strict=True)):
        assert a.device == META and a.shape == b.shape and a.dtype == b.dtype


def test_losses_stay_on_the_device(codec: Codec) -> None:
    batch = encoded(codec, SECOND, 1.0)
    codec.decode(batch.to(META))
    target, kinds = decoded(codec, batch), codec.kinds
    for loss in (*feature_losses().values(), *([SCORE] if "score" in kinds else [])):
        width = 6 if loss.compares == "score" else 8
        grids = canvas(batch.levels)
        student = [torch.zeros(3, width, *size, device=META, requires_grad=True) for size in grids]
        with OneDevice():
            value = loss(target, student)
            gradients = torch.autograd.grad(value, student)
        assert value.device == META and value.shape == ()
        assert [g.shape for g in gradients] == [s.shape for s in student]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t: t.tolist(),
        lambda t: t.sum().item(),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: t.cpu(),
        lambda t: torch.ones(2),
        lambda t: bool(t.any()),
        lambda t: torch.tensor([1.0]).to(META),
    ],
)
def test_what_would_wait_is_noticed(wrong: Any) -> None:
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), OneDevice():
        wrong(torch.zeros(3, 4, device=META))
