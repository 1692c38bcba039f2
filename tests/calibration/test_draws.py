"""Several probes of a kind, with other noise, measure the views in turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.calibration.probes import DRAWS, Probes
from pipeline.config import load_config
from pipeline.teacher.model import Teacher
from pipeline.teacher.zoo import find_teacher
from tests.helpers.datasets import CLASSES


def open_teacher(config: Path) -> Teacher:
    _, sections = load_config(str(config))
    return Teacher(find_teacher(sections.teacher), CLASSES, torch.device("cpu"))


def random_views(count: int) -> list[Tensor]:
    return list(
        torch.randint(0, 255, (count, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    )


@pytest.mark.parametrize("what", ["feature", "score"])
def test_each_view_is_measured_by_the_next_probe(made: dict[str, Path], what: str) -> None:
    views, log = random_views(DRAWS + 2), list[str]()
    teacher = open_teacher(made["frs"])
    first, again = (Probes(teacher, 1, lambda _: iter(views), log.append) for _ in range(2))
    made_probes = first.make(what, near=False)
    assert len(made_probes) == DRAWS and f"{DRAWS} of them explain" in log[0]
    for n, ((exact, measure), (_, repeated)) in enumerate(
        zip(first("choosing", [what], False), again("", [what], False))
    ):
        assert all(torch.equal(a, b) for a, b in zip(exact.features, teacher([views[n]]).features))
        worse = exact.__class__([f * 1.1 for f in exact.features], [s * 0.9 for s in exact.scores], exact.frs)
        own, other = (made_probes[k % DRAWS].measure(views[n], [what])[1](worse)[what] for k in (n, n + 1))
        assert measure(worse)[what] == own == repeated(worse)[what] != other


def test_probes_share_the_weights_that_no_noise_changes(made: dict[str, Path]) -> None:
    teacher = open_teacher(made["frs"])
    views = random_views(3)
    probes = Probes(teacher, 1, lambda _: iter(views), lambda _: None).make("feature", near=False)
    assert len(probes) == 3, "no more probes than views"
    named = [dict(probe._student.named_parameters()) for probe in probes]
    shared = [name for name, p in named[0].items() if all(p is own[name] for own in named)]
    changed = [name for name, p in named[0].items() if any(not torch.equal(p, own[name]) for own in named[1:])]
    assert changed and shared and not set(changed) & set(shared)
    assert sum(named[0][name].numel() for name in shared) > 0.5 * sum(p.numel() for p in named[0].values())
    assert not {id(p) for p in named[0].values()} & {id(p) for p in teacher.detector.parameters()}


def test_the_views_that_tuning_reads_are_known(made: dict[str, Path]) -> None:
    views = {"choosing": random_views(5), "learning": random_views(30)}
    read: list[str] = []

    def part(name: str) -> Iterator[Tensor]:
        for view in views[name]:
            read.append(name)
            yield view

    probes = Probes(open_teacher(made["frs"]), 1, part, lambda _: None)
    for what in ("score", "feature"):
        before, wanted = len(read), probes.reads(what, {name: len(own) for name, own in views.items()})
        probes.make(what, near=False)
        assert len(read) - before == wanted
