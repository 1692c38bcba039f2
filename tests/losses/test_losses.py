"""PKD, CWD and MGD equal plain numpy, ignore what lies outside a grid, and run on the caches that can serve them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.cache.items import decode_item, encode_item
from pipeline.codecs.packing import stack
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.errors import CodecError, ConfigError
from pipeline.losses.frs import feature_loss, score_loss
from pipeline.losses.ld import ld_loss
from pipeline.losses.mgd import MaskedGenerator
from pipeline.losses.registry import feature_losses, loss_named
from pipeline.records import TeacherOutput
from pipeline.sections import DistillSection
from pipeline.stage2.teacher_data import require_served
from tests.helpers.outputs import calibrated_codec, random_output

UNWEIGHTED = ["pkd", "cwd", "mgd"]
GRIDS = (((6, 9), (3, 5)), ((4, 7), (2, 4)))  # two samples of one batch


def numpy_loss(name: str, teacher: np.ndarray, student: np.ndarray, grids: list[tuple[int, int]]) -> float:
    """One level in plain numpy, float64: positions of each sample's own grid, gathered first."""
    pairs = [[x[b, :, :h, :w].reshape(x.shape[1], -1) for b, (h, w) in enumerate(grids)] for x in (teacher, student)]
    if name == "cwd":
        total = 0.0
        for t, s in zip(*pairs):
            p, q = (np.exp(x - x.max(axis=1, keepdims=True)) for x in (t, s))
            p, q = (x / x.sum(axis=1, keepdims=True) for x in (p, q))
            total += (p * np.log(p / q)).sum()
        return total / (len(grids) * teacher.shape[1])
    if name == "mgd":
        return sum(((t - s) ** 2).sum() for t, s in zip(*pairs)) / len(grids)
    # PKD's loss is one minus Pearson's correlation; (n - 1) / n for the unbiased deviation.
    t, s = (np.concatenate(parts, axis=1) for parts in pairs)
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(t, s)]
    return float(np.mean([1 - r for r in correlations])) * (t.shape[1] - 1) / t.shape[1]


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_losses_equal_numpy(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    target = random_output(2, list(GRIDS[0]), 8, 6)
    target = TeacherOutput(target.features, target.scores, target.frs, GRIDS)
    student = [f + torch.randn(f.shape, generator=generator) for f in target.features]
    found = float(loss_named(name)(target, student))
    levels = zip(target.features, student, zip(*GRIDS))
    expected = sum(numpy_loss(name, t.double().numpy(), s.double().numpy(), list(g)) for t, s, g in levels)
    assert found == pytest.approx(expected, rel=1e-5)


def test_losses_of_frs_equal_their_formulas_and_gradients() -> None:
    """Decoded scores may be slightly outside [0, 1], and the map may be 0."""
    generator = torch.Generator().manual_seed(7)
    y, t = (torch.randn(2, 5, 4, 6, generator=generator).double() for _ in range(2))
    t = t.sigmoid() * 1.02 - 0.01
    student = (torch.randn(2, 5, 4, 6, generator=generator).double() * 9).requires_grad_()
    m = torch.rand(2, 4, 6, generator=generator).double() * (torch.rand(2, 4, 6, generator=generator) < 0.7)
    formulas = (
        (feature_loss, y, m[:, None] * (y - student).square()),
        (score_loss, t, m[:, None] * F.binary_cross_entropy_with_logits(student, t, reduction="none")),
    )
    for loss, teacher, terms in formulas:
        found, expected = loss(teacher, student, m), terms.sum() / m.sum()
        assert torch.allclose(found, expected, rtol=1e-7)
        gradients = (torch.autograd.grad(3 * value, student)[0] for value in (found, expected))
        assert torch.allclose(*gradients, rtol=1e-7, atol=1e-12)
        assert torch.autograd.gradcheck(partial(loss, teacher, richness=m), (student,))
        assert float(loss(teacher, student, torch.zeros_like(m))) == 0


def test_the_generator_of_mgd_sees_a_third_of_the_positions() -> None:
    """Equal to the reference: align, mask whole positions, convolve, ReLU, convolve."""
    torch.manual_seed(2)
    module, student = MaskedGenerator(4, 6), torch.randn(2, 4, 40, 50, requires_grad=True)
    torch.manual_seed(3)
    found = module(student)
    torch.manual_seed(3)
    kept = (torch.rand(2, 1, 40, 50) > 0.65).float()
    first, last = module.generate[0], module.generate[2]
    inputs = F.conv2d(student, module.align.weight, module.align.bias) * kept
    hidden = F.conv2d(inputs, first.weight, first.bias, padding=1).relu()
    assert torch.allclose(found, F.conv2d(hidden, last.weight, last.bias, padding=1), atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert not gradient[(kept == 0).expand_as(gradient)].any() and 0.3 < kept.mean() < 0.4
    assert isinstance(MaskedGenerator(6, 6).align, torch.nn.Identity)


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_nothing_outside_a_grid_counts(name: str) -> None:
    target = random_output(2, list(GRIDS[0]), 8, 6)
    student = [torch.randn_like(f).requires_grad_() for f in target.features]
    losses = []
    for beyond in (0.0, 7.0):
        features = [f.clone() for f in target.features]
        for level, own in zip(features, GRIDS[1]):
            level[1, :, own[0] :], level[1, :, :, own[1] :] = beyond, beyond
        masked = TeacherOutput(features, target.scores, target.frs, GRIDS)
        losses.append(loss_named(name)(masked, student))
    assert float(losses[0]) == float(losses[1])
    for gradient, own in zip(torch.autograd.grad(losses[0], student), GRIDS[1]):
        assert torch.isfinite(gradient).all() and gradient[0].any()
        assert not gradient[1, :, own[0] :].any() and not gradient[1, :, :, own[1] :].any()


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_a_dead_channel_has_a_gradient(name: str) -> None:
    target = random_output(1, [(4, 4)], 3, 2)
    target.features[0][:, 0] = 1.0
    student = [torch.zeros(1, 3, 4, 4, requires_grad=True)]
    (gradient,) = torch.autograd.grad(loss_named(name)(target, student), student)
    assert torch.isfinite(gradient).all()


def test_the_universal_profile_serves_every_loss() -> None:
    universal, own = calibrated_codec("frs", quality=0.03, profile="universal"), calibrated_codec("frs", quality=0.03)
    assert max(universal.gradient_error(loss.name) for loss in feature_losses().values()) <= 0.03 * 1.2
    assert own.gradient_error("feature") <= 0.03 * 1.2 < own.gradient_error("pkd")
    for loss in feature_losses():
        require_served(universal, DistillSection(1.0, 1.0, feature_loss=loss), Path("cache"))
        require_served(calibrated_codec("lossless"), DistillSection(1.0, 1.0, feature_loss=loss), Path("cache"))


def test_a_cache_that_spoils_a_loss_is_refused() -> None:
    codec = calibrated_codec("frs", quality=0.5)
    errors = {**codec.calibration.probe_error, "pkd": 1.7}
    codec = replace(codec, calibration=replace(codec.calibration, probe_error=errors))
    with pytest.raises(ConfigError, match=r"at most 100%.*has 170%.*profile='universal'"):
        require_served(codec, DistillSection(1.0, 1.0, feature_loss="pkd"), Path("cache"))
    require_served(codec, DistillSection(1.0, 1.0), Path("cache"))


def test_without_class_scores() -> None:
    """A student that asks for them is refused, one that does not is served as well as from the whole cache."""
    codec, whole = calibrated_codec("frs", quality=0.03, scores=False), calibrated_codec("frs", quality=0.03)
    assert codec.gradient_error("feature") == whole.gradient_error("feature") and codec.score_channels == 0
    exact = random_output(1, list(GRIDS[0]), 8, 6)
    (sample,), (beside,) = codec.encode(exact)[0], whole.encode(exact)[0]
    assert "scores" not in sample and all(np.array_equal(sample[name], beside[name]) for name in sample)
    require_served(codec, DistillSection(1.0, 0.0), Path("cache"))
    with pytest.raises(ConfigError, match=r"distill\.score_weight=0\.1: cache was made without class scores"):
        require_served(codec, DistillSection(1.0, 0.1), Path("cache"))


def test_ld_equals_numpy() -> None:
    """The mean over sides of KL between softened distributions, weighted by the map."""
    generator = torch.Generator().manual_seed(1)
    teacher, student = (torch.randn(2, 4 * 5, 3, 4, generator=generator) * 8 for _ in range(2))
    richness = torch.rand(2, 3, 4, generator=generator)
    richness[1, 2:] = 0
    total = 0.0
    for b, y, x in np.ndindex(2, 3, 4):
        for side in range(4):
            t, s = (z[b, 5 * side : 5 * side + 5, y, x].double().numpy() / 10 for z in (teacher, student))
            p, q = (np.exp(z) / np.exp(z).sum() for z in (t, s))
            total += float(richness[b, y, x]) * (p * np.log(p / q)).sum() * 100 / 4
    assert float(ld_loss(teacher, student, richness)) == pytest.approx(total / float(richness.sum()), rel=1e-5)
    assert float(ld_loss(teacher, teacher, richness)) == 0


def test_ld_of_stored_boxes_is_that_of_the_teacher() -> None:
    """To the bit: what the lossless codec stores and decodes gives the same loss and gradient."""
    sizes, generator = [(7, 9), (4, 5)], torch.Generator().manual_seed(1)
    exact = random_output(2, sizes, 8, 6)
    boxes = [torch.randn(2, 4 * 5, h, w, generator=generator) * 3 for h, w in sizes]
    exact = replace(exact, boxes=boxes)

    class Sample:
        def outputs(self, part: str) -> Iterator[TeacherOutput]:
            yield exact

    sample: Any = Sample()
    codec = calibrate_codec(read_options({"type": "lossless", "boxes": True}), sample)
    assert (codec.box_channels, codec.settings["box_channels"]) == (20, 20)
    encoded, _ = codec.encode(exact)
    rows = []
    for one in encoded:
        limits = codec.size_limits(exact.levels)
        items = {i.name: (i, encode_item(i, one[i.name])) for i in codec.items()}
        rows.append({name: decode_item(*item, limits[name], 7 * 9 + 4 * 5) for name, item in items.items()})
        codec.check_sample(rows[-1], exact.levels)
    stored = codec.decode(stack(rows, [exact.levels] * 2))
    losses = []
    for output in (exact, stored):
        students = [torch.ones_like(box, requires_grad=True) for box in boxes]
        loss = sum((ld_loss(*given) for given in zip(output.boxes, students, output.frs)), torch.zeros(()))
        losses.append((loss, *torch.autograd.grad(loss, students)))
    assert all(torch.equal(a, b) for a, b in zip(*losses)) and losses[0][0] > 0
    with pytest.raises(CodecError, match="expected 20 box channels, found 0"):
        codec.encode(replace(exact, boxes=[]))


def test_a_codec_without_boxes_stores_none() -> None:
    codec = calibrated_codec("lossless")
    assert "boxes" not in codec.settings and "box_channels" not in codec.settings
    assert [item.name for item in codec.items()] == ["features", "scores", "frs"] and codec.box_channels == 0
    assert calibrated_codec("frs").settings.keys().isdisjoint(("boxes", "box_channels", "box_step", "box_error"))
