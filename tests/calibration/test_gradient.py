"""The measure of a codec equals what two plain backward passes give, and the probe is a student worth measuring on."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.cache.cache import Cache
from pipeline.cache.sidecar import load_sidecar
from pipeline.calibration import positions
from pipeline.calibration.adapters import RIDGE, Adapters, fit_adapters
from pipeline.calibration.calibrate import find_drift
from pipeline.calibration.gradient import Errors, StudentPass, filter_sizes, unexplained_variance
from pipeline.calibration.noise import LARGEST, Found
from pipeline.calibration.positions import sample_output
from pipeline.calibration.probe import FROZEN, LEFT, Probe, Tuning, frozen_parts
from pipeline.calibration.probes import describe_probes
from pipeline.calibration.training import relative_gradient, train
from pipeline.config import load_config
from pipeline.losses.registry import loss_named
from pipeline.mmdet_compat.registry import MODELS
from pipeline.records import TeacherOutput
from pipeline.teacher.model import Teacher
from pipeline.teacher.zoo import find_teacher
from tests.helpers.datasets import CLASSES
from tests.helpers.outputs import random_output


class Small(nn.Module):
    """Features and logits of two levels from one image, a layer that both share, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.logits = nn.Conv2d(8, 6, 3, padding=1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        fine = self.stem(x).tanh()
        levels = [fine, nn.functional.avg_pool2d(fine, 2)]
        return levels, [self.logits(level) for level in levels]


def both(student: Small, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    return dict(zip(("feature", "score"), student(x)))


def gradient(
    student: Small, x: torch.Tensor, target: TeacherOutput, weights: dict[str, float], sized: bool = True
) -> torch.Tensor:
    """Compute the gradient of the weighted losses, each part times the rms of its filter's weights if `sized`."""
    found = {name: loss_named(name)(target, own) for name, own in both(student, x).items()}
    student.zero_grad()
    (weights["feature"] * found["feature"] + weights["score"] * found["score"]).backward()
    parts = []
    for p in student.parameters():
        if p.grad is not None:
            size = (
                p.detach().square().mean(dim=list(range(1, p.dim())), keepdim=True).sqrt()
                if p.dim() > 1
                else p.detach()
            )
            parts.append((p.grad * size if sized else p.grad).flatten())
    return torch.cat(parts)


def changed(exact: TeacherOutput) -> TeacherOutput:
    return TeacherOutput(
        [f + 0.1 * torch.randn_like(f) for f in exact.features],
        [s * 0.9 for s in exact.scores],
        [m * (1 + 0.01 * torch.randn_like(m)) for m in exact.frs],
    )


def test_errors_are_those_of_plain_backward_passes() -> None:
    torch.manual_seed(3)
    student, x = Small(), torch.randn(1, 3, 16, 24)
    exact = random_output(1, [(16, 24), (8, 12)], 8, 6, 1)
    coded = changed(exact)
    weights = {"feature": 0.3, "score": 2.0}
    found = StudentPass(both(student, x), list(student.parameters()), exact).errors(coded, weights)
    cases = {"feature": {"feature": 1.0, "score": 0.0}, "score": {"feature": 0.0, "score": 1.0}, "total": weights}
    for name, share in cases.items():
        one, two = (gradient(student, x, target, share) for target in (exact, coded))
        assert found.relative[name] == pytest.approx(float((two - one).norm() / one.norm()), rel=1e-3)
        assert found.cosine[name] == pytest.approx(float(torch.cosine_similarity(one, two, dim=0)), abs=1e-4)
        one, two = (gradient(student, x, target, share, sized=False) for target in (exact, coded))
        assert found.plain[name] == pytest.approx(float((two - one).norm() / one.norm()), rel=1e-3)
    same = StudentPass(both(student, x), list(student.parameters()), exact).errors(exact)
    assert all(value == 0 for value in same.relative.values())
    for name, outputs in both(student, x).items():  # one loss alone
        alone = StudentPass({name: outputs}, list(student.parameters()), exact).errors(coded)
        assert alone.relative[name] == alone.relative["total"] == pytest.approx(found.relative[name], rel=1e-6)


class Normed(Small):
    """The same with a batch norm's scale after the stem, which `rewrite` exchanges for the size of the filters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        fine = (nn.functional.conv2d(x, self.stem.weight, padding=1) * self.scale[:, None, None]).tanh()
        levels = [fine, nn.functional.avg_pool2d(fine, 2)]
        return levels, [self.logits(level) for level in levels]

    @torch.no_grad()
    def rewrite(self, factors: torch.Tensor) -> Normed:
        self.stem.weight *= factors[:, None, None, None]
        self.scale /= factors
        return self


def test_the_error_does_not_depend_on_how_a_network_is_written() -> None:
    torch.manual_seed(4)
    student, x = Normed(), torch.randn(1, 3, 16, 24)
    exact = random_output(1, [(16, 24), (8, 12)], 8, 6, 1)
    coded, factors = changed(exact), 2.0 ** torch.arange(-8, 8, 2)
    written = student, copy.deepcopy(student).rewrite(factors)
    one, two = (StudentPass(both(s, x), list(s.parameters()), exact).errors(coded) for s in written)
    for name in ("feature", "score", "total"):
        assert two.relative[name] == pytest.approx(one.relative[name], rel=1e-4)
        assert two.cosine[name] == pytest.approx(one.cosine[name], rel=1e-4)
        assert abs(two.plain[name] / one.plain[name] - 1) > 0.02, "one channel has most of the plain gradient"


def test_the_squares_of_a_tiny_gradient_do_not_underflow() -> None:
    torch.manual_seed(5)
    student, x = Small(), torch.randn(1, 3, 16, 24)
    exact = random_output(1, [(16, 24), (8, 12)], 8, 6, 1)
    coded, tiny = changed(exact), 1e-25  # float32 ends at 1e-45
    faint = {name: [tiny * level for level in outputs] for name, outputs in both(student, x).items()}
    found = StudentPass(faint, list(student.parameters()), exact).errors(coded)
    zero = {name: [level - level.detach() for level in outputs] for name, outputs in both(student, x).items()}
    expected = StudentPass(zero, list(student.parameters()), exact).errors(coded)
    for name in ("feature", "score"):
        assert found.relative[name] == pytest.approx(expected.relative[name], rel=1e-3)


def test_a_view_without_gradient_has_no_error() -> None:
    student, x = Small(), torch.randn(1, 3, 16, 24)
    exact = random_output(1, [(16, 24), (8, 12)], 8, 6, 1)
    blank = TeacherOutput(exact.features, exact.scores, [torch.zeros_like(m) for m in exact.frs])
    none = StudentPass(both(student, x), list(student.parameters()), blank).errors(exact)
    assert none.relative["total"] != none.relative["total"]  # NaN
    some = StudentPass(both(student, x), list(student.parameters()), exact).errors(blank)
    assert Errors.mean([none, some]).relative == some.relative


def test_unexplained_variance() -> None:
    views = [random_output(1, [(16, 24), (8, 12)], 8, 6, n) for n in (1, 2, 3)]
    for what in ("feature", "score"):
        assert unexplained_variance(what, [(view, view.values(what)) for view in views]) == 0.0
        level_means = []
        for level in range(2):
            weights = [view.frs[level] / view.frs[level].sum() for view in views]
            sums = [(w * view.values(what)[level]).sum(dim=(0, 2, 3)) for w, view in zip(weights, views)]
            level_means.append(sum(sums)[None, :, None, None] / 3)
        means = [(view, [m.expand_as(y) for m, y in zip(level_means, view.values(what))]) for view in views]
        assert unexplained_variance(what, means) == pytest.approx(1.0, rel=1e-3)


def fitted_to(views: list[tuple[TeacherOutput, list[torch.Tensor]]]) -> Adapters:
    return fit_adapters((sample_output(exact), features) for exact, features in views)


def test_adapters_are_the_weighted_regression() -> None:
    torch.manual_seed(5)
    truth = nn.Conv2d(6, 6, 3, padding=1)
    views = []
    for _ in range(16):
        features = [torch.randn(1, 6, 16, 24), torch.randn(1, 6, 8, 12)]
        maps = [torch.rand(1, *x.shape[-2:]) for x in features]
        maps[1][..., 6:] = 0  # what carries no weight may be anything
        exact = [truth(x).detach() for x in features]
        exact[1][..., 6:] = 1e3
        views.append((TeacherOutput(exact, features, maps), features))
    # Weights shrink by about RIDGE / (1 + RIDGE); bias and directions are the true ones.
    for level, fitted in enumerate(fitted_to(views).weights):
        slope = float((fitted * truth.weight).sum() / truth.weight.square().sum())
        assert slope == pytest.approx(1 / (1 + RIDGE), abs=0.03), level
        assert float(torch.cosine_similarity(fitted.flatten(), truth.weight.flatten(), dim=0)) > 0.98
    blank = [(TeacherOutput(e.features, e.scores, [torch.zeros_like(m) for m in e.frs]), f) for e, f in views]
    assert all(float(w.abs().max()) == 0 for w in fitted_to(blank).weights)


def test_adapters_of_large_levels_are_found_on_some_of_their_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled by weight, the regression comes out as it does on all positions; a blank level still gives nothing."""
    torch.manual_seed(6)
    views = []
    for _ in range(4):
        x = torch.randn(1, 4, 64, 80)
        noisy = nn.functional.conv2d(x, torch.ones(4, 4, 3, 3) / 6, padding=1) + torch.randn(1, 4, 64, 80)
        views.append((TeacherOutput([noisy], [x], [torch.rand(1, 64, 80) ** 8]), [x]))
    blank = [(TeacherOutput(e.features, e.scores, [torch.zeros_like(m) for m in e.frs]), f) for e, f in views]
    monkeypatch.setattr(positions, "POSITIONS", 64 * 80)
    (whole,) = fitted_to(views).weights
    monkeypatch.setattr(positions, "POSITIONS", 2048)
    (some,) = fitted_to(views).weights
    assert not torch.equal(some, whole)
    assert float((some - whole).norm() / whole.norm()) < 0.25  # of 4 x 2048 positions, 36 weights a channel
    assert all(float(w.abs().max()) == 0 for w in fitted_to(blank).weights)


def test_adapters_of_a_slightly_disturbed_copy_leave_little() -> None:
    """The regression has fewer positions than weights; shrunk towards 0 it would leave much of a perfect copy."""
    torch.manual_seed(7)
    y = [torch.randn(1, 8, 8, 6) for _ in range(2)]
    left = {}
    for noise in (0.0, 0.01):
        x = [f + noise * torch.randn_like(f) for f in y]
        views = [(sample_output(TeacherOutput([f], [], [torch.rand(1, 8, 6)])), [copied]) for f, copied in zip(y, x)]
        for copies in (False, True):
            (adapted,) = fit_adapters(views, copies)([torch.cat(x)])
            left[noise, copies] = float((adapted - torch.cat(y)).square().mean())
    assert left[0.0, True] < 1e-9
    assert left[0.01, True] < 2e-4 < 10 * left[0.01, True] < left[0.01, False]


def test_only_a_resnet_has_parts_that_its_students_freeze() -> None:
    assert frozen_parts(MODELS.build({"type": "ResNetV1d", "depth": 18})) == FROZEN
    darknet = MODELS.build({"type": "CSPDarknet", "deepen_factor": 0.33, "widen_factor": 0.25})
    assert hasattr(darknet, "stem") and not frozen_parts(darknet), "its students train the stem"


@pytest.mark.parametrize("what", ["feature", "score"])
def test_the_probe_is_a_teacher_gone_wrong(made: dict[str, Path], what: str) -> None:
    _, sections = load_config(str(made["frs"]))
    teacher = Teacher(find_teacher(sections.teacher), CLASSES, torch.device("cpu"))
    view, *others = torch.randint(0, 255, (8, 3, 64, 128), dtype=torch.uint8)
    before = teacher([view])
    probe = Probe(teacher, what, 1, Tuning(teacher, others[:2], others[2:]), target=0.3, training=None)
    exact, measured = probe.measure(view, [what])
    after = teacher([view])
    assert all(torch.equal(a, b) for a, b in zip(before.features + before.scores, after.features + after.scores))
    assert measured(exact)[what] == 0.0
    worse = TeacherOutput([f * 1.1 for f in exact.features], [s * 0.9 for s in exact.scores], exact.frs)
    assert 0.001 < measured(worse)[what] < 10
    assert 0 < probe.found.amount <= LARGEST and 0 < probe.found.share < 2
    same = ("neck.", "bbox_head.", "rpn_head.")  # only the backbone is disturbed
    for (key, p), (_, clean) in zip(probe._student.named_parameters(), teacher.detector.named_parameters()):
        assert not key.startswith(same) or torch.equal(p, clean), key
    frozen = [p for key, p in probe._student.named_parameters() if key.startswith(FROZEN)]
    assert frozen and not any(p.requires_grad for p in frozen)
    assert not any(p.requires_grad for p in teacher.detector.parameters())


def test_probes_that_missed_their_distance_say_so() -> None:
    assert "warning" not in describe_probes("feature", [Found(0.1, 0.15, True)], 0.25)
    alike = [Found(0.1, 0.181, True), Found(0.1, 0.179, True)]
    assert "82% of the variance explained by 2 of them" in describe_probes("feature", alike, 0.25)
    found = [Found(4.0, 0.07, False), Found(4.0, 0.31, False)]
    line, warning = describe_probes("score", found, 0.5).splitlines()
    assert "69% to 93% of the variance explained by 2 of them" in line and "explains 50%" in line
    assert warning.startswith("warning  ") and "expected about 50%" in warning


def test_a_trained_probe_has_less_gradient_at_its_distance(made: dict[str, Path]) -> None:
    _, sections = load_config(str(made["frs"]))
    teacher = Teacher(find_teacher(sections.teacher), CLASSES, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    views = list(torch.randint(0, 255, (24, 3, 64, 128), dtype=torch.uint8, generator=generator))
    tuning, clean = Tuning(teacher, views[:4], views[4:8]), teacher([views[0]])
    noisy, trained, again = (Probe(teacher, "score", 1, tuning, 0.2, training) for training in (None, views, views))

    def gradient(probe: Probe) -> float:
        losses = [probe._loss(view) for view in views[:4]]
        squares = [g.square().sum() for loss in losses for g in relative(loss, probe)]
        return float(sum(squares) / probe.found.share)

    def relative(loss: torch.Tensor, probe: Probe) -> list[torch.Tensor]:
        units = filter_sizes(probe._trained).split([p.numel() for p in probe._trained])
        return relative_gradient(loss, probe._trained, [u.view_as(p) for u, p in zip(units, probe._trained)])

    assert gradient(trained) < 0.7 * gradient(noisy)
    assert trained.found.share < 0.9 * 0.2 / LEFT, "training removes a part of what the noise did"
    assert all(torch.equal(a, b) for a, b in zip(trained._trained, again._trained)), "the same probe again"
    assert all(torch.equal(a, b) for a, b in zip(clean.features, teacher([views[0]]).features))


@pytest.mark.parametrize("without", [0.0, float("nan")])
def test_views_without_a_finite_gradient_do_not_train_a_probe(without: float) -> None:
    plain, first, later = ([torch.nn.Parameter(torch.ones(3, 4))] for _ in range(3))
    views, none = [torch.full((4,), n / 9) for n in range(1, 7)], torch.full((4,), without)

    for (weight,), given in ((plain, views), (first, [none, none, *views]), (later, [*views, none, none])):
        train([weight], filter_sizes([weight]), lambda x, weight=weight: (weight @ x).square().sum(), given)

    assert not torch.equal(plain[0], torch.ones(3, 4))
    assert torch.equal(first[0], plain[0]) and torch.equal(later[0], plain[0])


def test_errors_are_those_of_the_promised_student(made: dict[str, Path]) -> None:
    _, sections = load_config(str(made["frs"]))
    teacher = Teacher(find_teacher(sections.teacher), CLASSES, torch.device("cpu"))
    view, *others = torch.randint(0, 255, (8, 3, 64, 128), dtype=torch.uint8)
    probe = Probe(teacher, "score", 1, Tuning(teacher, others[:2], others[2:]), target=0.3, training=others)
    exact, measured = probe.measure(view, ["score"])
    worse = replace(exact, scores=[s * 0.9 for s in exact.scores])
    own = {"score": probe._compared(probe._features(view), "score")}
    plain = StudentPass(own, probe._trained, exact).errors(worse).relative["score"]
    assert measured(worse)["score"] == pytest.approx(plain * (probe.found.share / 0.3) ** 0.5)


def test_drift_is_told(made: dict[str, Path]) -> None:
    cache = Cache(made["frs"].parent / "cache")
    path = cache.root / "pass-0" / "shard-00000.tar"
    sidecar, expected = load_sidecar(path.with_suffix(".json")), cache.codec_manifest()["measured"]
    places = 1000
    generous = {**expected, "bytes_per_position": dict.fromkeys(expected["bytes_per_position"], 1e9)}
    assert find_drift(path, sidecar, places, generous) == []
    narrow = {"errors": dict.fromkeys(expected["errors"], 1e-9), "bytes_per_position": {"features": 1e-9}}
    lines = find_drift(path, sidecar, places, narrow)
    assert len(lines) == 3 and all(line.startswith("warning  pass-0/shard-00000.tar: ") for line in lines)
