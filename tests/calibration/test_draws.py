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
    draws, log = DRAWS[what], list[str]()
    views, teacher = random_views(DRAWS["score"] + 2), open_teacher(made["frs"])
    first, again = (Probes(teacher, 1, lambda _: iter(views), log.append) for _ in range(2))
    probes = first.make(what, near=False)
    assert len(probes) == draws and ("by 4 of them" in log[0]) == (draws > 1)
    pairs = zip(first("choosing", [what], False), again("choosing", [what], False))
    for n, ((exact, measure), (_, repeated)) in enumerate(pairs):
        assert all(torch.equal(a, b) for a, b in zip(exact.features, teacher([views[n]]).features))
        worse = exact.__class__([f * 1.1 for f in exact.features], [s * 0.9 for s in exact.scores], exact.frs)
        own, other = (probes[k % draws].measure(views[n], [what])[1](worse)[what] for k in (n, n + 1))
        assert measure(worse)[what] == own == repeated(worse)[what]
        assert draws == 1 or own != other


def test_there_are_no_more_probes_than_views_to_tune_them(made: dict[str, Path]) -> None:
    views = random_views(2)
    assert len(Probes(open_teacher(made["frs"]), 1, lambda _: iter(views), lambda _: None).make("score", False)) == 2


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
