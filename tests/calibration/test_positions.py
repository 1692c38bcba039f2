"""Sampled positions give the variance that whole maps give, and the search of a probe's noise needs no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.calibration import probe
from pipeline.calibration.gradient import unexplained_variance
from pipeline.calibration.positions import POSITIONS, sample_output
from pipeline.config import load_config
from pipeline.teacher.model import Teacher
from pipeline.teacher.zoo import find_teacher
from tests.helpers.datasets import CLASSES
from tests.helpers.outputs import random_output


@pytest.mark.parametrize("what", ["feature", "score"])
def test_the_variance_at_sampled_positions_is_that_of_all(what: str) -> None:
    sizes = [(64, 80), (16, 24)]
    assert sizes[0][0] * sizes[0][1] > POSITIONS > sizes[1][0] * sizes[1][1]
    views = [random_output(1, sizes, 4, 3, n) for n in range(4)]
    students = [[x * 0.8 + 0.1 * torch.rand_like(x) for x in view.values(what)] for view in views]
    whole = unexplained_variance(what, zip(views, students))
    sampled = [sample_output(view) for view in views]
    some = unexplained_variance(what, ((s.output, s.gather(own)) for s, own in zip(sampled, students)))
    assert some == pytest.approx(whole, rel=0.05) and 0.01 < whole < 1
    assert sampled[0].output.features[0].shape == (1, 4, 1, POSITIONS)
    assert all(float(w.sum()) == pytest.approx(1.0, abs=1e-4) for s in sampled for w in s.output.frs)
    assert sample_output(views[0], scores=False).output.scores == []


def test_the_search_of_the_noise_does_not_run_the_teacher(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sections = load_config(str(made["frs"]))
    teacher = Teacher(find_teacher(sections.teacher), CLASSES, torch.device("cpu"))
    views = list(torch.randint(0, 255, (4, 3, 64, 128), dtype=torch.uint8))
    tuning = probe.Tuning(teacher, views[:2], views[2:])
    monkeypatch.setattr(Teacher, "__call__", lambda *_: pytest.fail("the teacher runs again"))
    for what in ("feature", "score"):
        found = probe.Probe(teacher, what, 1, tuning, target=0.2, training=None).found
        assert found.amount > 0 and found.share > 0
