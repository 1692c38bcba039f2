"""Box distributions in the frs and frs2 codecs: the error of LD that they promise, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cache.canonical import read_json
from pipeline.cache.items import decode_item, encode_item
from pipeline.codecs.base import Codec
from pipeline.codecs.frs.boxes import MISSED, to_signed, to_unsigned
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.group import load_codec, save_codec
from pipeline.codecs.packing import positions, stack
from pipeline.codecs.summary import promise
from pipeline.errors import CodecError, CorruptCache
from pipeline.losses.ld import ld_loss
from pipeline.records import EncodedBatch, TeacherOutput
from tests.helpers.boxed import BINS, SIZES, BoxedSample, boxed
from tests.helpers.related import related_codec, short_training


@pytest.fixture(scope="module", params=["frs", "frs2"])
def codec(request: pytest.FixtureRequest) -> Frs:
    with short_training(5):
        found = related_codec(BoxedSample(), type=request.param, boxes=True)
    assert isinstance(found, Frs)
    return found


def stored(codec: Codec, *outputs: TeacherOutput) -> EncodedBatch:
    """A batch of what a shard contains."""
    rows, grids = [], []
    for output in outputs:
        limits = codec.size_limits(output.levels)
        for sample in codec.encode(output)[0]:
            items = {i.name: (i, encode_item(i, sample[i.name])) for i in codec.items()}
            found = {name: decode_item(*one, limits[name], positions(output.levels)) for name, one in items.items()}
            rows.append(codec.read_sample(found, output.levels))
            grids.append(output.levels)
    return stack(rows, grids)


def gradients(target: TeacherOutput, students: list[torch.Tensor]) -> torch.Tensor:
    """The gradient of LD on a student's logits."""
    leaves = [z.clone().requires_grad_() for z in students]
    loss = sum((ld_loss(*given) for given in zip(target.boxes, leaves, target.frs)), torch.zeros(()))
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])


def test_the_gradient_of_ld_has_the_stated_error(codec: Frs) -> None:
    """For a student that predicts the mean distribution, which leaves all of the variance instead of MISSED."""
    exact = boxed(200)
    decoded = codec.decode(stored(codec, exact))
    students = [torch.zeros_like(z) for z in exact.boxes]
    for z, m, student in zip(exact.boxes, decoded.frs, students):
        weight = (m / m.sum(dim=(1, 2), keepdim=True)).square()[:, None, None]
        p = torch.softmax(z.unflatten(1, (4, -1)) / 10, dim=2)
        student[:] = (
            (10 * ((weight * p).sum(dim=(3, 4), keepdim=True) / weight.sum(dim=(3, 4), keepdim=True)).log())
            .expand_as(p)
            .flatten(1, 2)
        )
    wanted = gradients(replace(exact, frs=decoded.frs), students)
    found = float((gradients(decoded, students) - wanted).norm() / wanted.norm()) / MISSED**0.5

    assert codec.calibration.box_error == pytest.approx(0.03, rel=0.25)
    assert found == pytest.approx(0.03, rel=0.25)


def test_decoded_sides_differ_by_a_constant(codec: Frs) -> None:
    """Within half a step where the map is strong, for any batch."""
    exact, other = boxed(300), boxed(301, 1, [(9, 14), (5, 7)])
    batch = stored(codec, exact, other)
    decoded = codec.decode(batch)

    for level, (h, w) in enumerate(other.levels):
        z = other.boxes[level][0].unflatten(0, (4, -1))
        off = (
            (decoded.boxes[level][2, :, :h, :w].unflatten(0, (4, -1)) - (z - z.mean(1, keepdim=True)))
            .abs()
            .amax((0, 1))
        )
        bound = codec.calibration.step("box") / 2 / decoded.frs[level][2, :h, :w].sqrt()
        assert bool((off <= bound * 1.001 + 1e-5).all())
    ratios = codec.compare(other, stored(codec, other))
    assert ratios.keys() == {"features", "scores", "frs", "boxes"} and 0.5 < ratios["boxes"] <= 1.001
    assert codec.compare(replace(other, boxes=[2 * z for z in other.boxes]), stored(codec, other))["boxes"] > 2


def test_settings_and_bytes(codec: Frs, tmp_path: Path) -> None:
    """A fifth of the lossless bytes at most, and the sizes are known before anything is decompressed."""
    exact = boxed(302, 1)
    (sample,), _ = codec.encode(exact)
    item = codec.items()[-1]
    assert (item.name, item.dtype, sample["boxes"].shape) == ("boxes", "uint16", (positions(SIZES), 4 * BINS))
    assert len(encode_item(item, sample["boxes"])) < 4 * sample["boxes"].size / 5
    assert codec.size_limits(exact.levels)["boxes"] == (sample["boxes"].nbytes,) * 2
    save_codec(codec, tmp_path, {})
    again = load_codec(tmp_path, read_json(tmp_path / "codec.json"))
    assert again.settings == codec.settings and again.settings["boxes"] is True
    assert {"box_channels", "box_step", "box_error"} <= again.settings.keys()
    assert f", {again.settings['box_error']:.1%} (boxes, on their logits); " in promise(again.settings)


def test_numbers_of_both_signs() -> None:
    q = torch.tensor([0.0, -1, 1, -2, 2, 32767, -32767])
    assert to_unsigned(q).tolist() == [0, 1, 2, 3, 4, 65534, 65533] and torch.equal(to_signed(to_unsigned(q)), q)


@pytest.mark.parametrize("forged", [None, np.zeros((240, 19), np.uint16), np.zeros((240, 20), np.int16)])
def test_samples_that_no_encoder_writes_are_refused(codec: Frs, forged: Any) -> None:
    exact = boxed(303, 1)
    (sample,), _ = codec.encode(exact)
    sample["boxes"] = forged
    if forged is None:
        del sample["boxes"]
    with pytest.raises(CorruptCache, match=r"boxes|do not fit"):
        codec.check_sample(sample, exact.levels)


def test_values_and_settings_that_do_not_fit(codec: Frs) -> None:
    exact = boxed(304, 1)
    with pytest.raises(CodecError, match=r"boxes: level 0: value \d+ beyond 32767; increase cache\.codec\.quality"):
        codec.encode(replace(exact, boxes=[1e5 * z for z in exact.boxes]))
    with pytest.raises(CodecError, match="expected 20 box channels, found 0"):
        codec.encode(replace(exact, boxes=[]))
    for wrong in ({"box_channels": None}, {"box_step": None}):
        with pytest.raises(ValueError, match=r"settings\.box_"):
            type(codec)(codec.options, replace(codec.calibration, **wrong), codec.tables).validate()


def test_distributions_that_are_the_same_everywhere_are_refused() -> None:
    class Flat(BoxedSample):
        def outputs(self, part: str) -> Iterator[TeacherOutput]:
            for output in super().outputs(part):
                yield replace(output, boxes=[torch.zeros_like(z) for z in output.boxes])

    with pytest.raises(CodecError, match=r"the same everywhere; set cache\.codec\.boxes=False"):
        related_codec(Flat(), type="frs", boxes=True)
