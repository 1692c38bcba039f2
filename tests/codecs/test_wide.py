"""Heads of thousands of score channels: no matrix of all pairs of them is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.codecs.frs import sketch, statistics
from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.statistics import Statistics
from pipeline.records import TeacherOutput
from tests.helpers.memory import cost_of

GRIDS = ((16, 20), (8, 10))


def outputs(channels: int, views: int, rank: int = 12) -> list[TeacherOutput]:
    """Outputs whose scores vary in `rank` directions, and a little in all."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn((rank, channels), generator=generator)
    found = []
    for _ in range(views):
        scores = []
        for h, w in GRIDS:
            x = torch.randn((h * w, rank), generator=generator) @ mix + 0.05 * torch.randn((h * w, channels))
            scores.append((x - 4).sigmoid().T.reshape(1, channels, h, w))
        features = [torch.randn((1, 8, h, w), generator=generator) for h, w in GRIDS]
        found.append(TeacherOutput(features, scores, [s.amax(dim=1) for s in scores]))
    return found


def learned(channels: int, views: int = 3) -> tuple[np.ndarray, np.ndarray, float]:
    made = Statistics(len(GRIDS), 8, channels)
    for output in outputs(channels, views):
        maps = BatchMaps.encode(output.frs, 255)
        made.add(output, maps.floats, maps.floats, maps.buckets)
    return made.roots()


def test_a_sketch_has_the_leading_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their energy is that of the leading eigenvectors, and the means and the whole energy are the same."""
    torch.manual_seed(0)
    means, exact, energy = learned(200)
    monkeypatch.setattr(statistics, "WIDE", 100)
    monkeypatch.setattr(sketch, "RANK", 40)
    monkeypatch.setattr(sketch, "SKETCH", 60)
    torch.manual_seed(0)
    wide_means, basis, wide_energy = learned(200)
    assert exact.shape == (200, 200) and basis.shape == (200, 40) and basis.dtype == np.float32
    assert np.array_equal(means, wide_means) and wide_energy == pytest.approx(energy, rel=1e-3)
    assert np.abs(basis.T @ basis - np.eye(40)).max() < 1e-4
    shares = exact[:, :12].T @ basis  # of the directions that matter
    assert np.square(shares).sum(axis=1).min() > 0.995
    assert (np.abs(basis).max(axis=0) == basis.max(axis=0)).all()  # signs are defined


def calibrate_wide(codec: str, channels: int) -> None:
    from pipeline.codecs.registry import calibrate_codec, read_options

    views = outputs(channels, 1)

    class Sample:
        scored = True

        def outputs(self, part: str) -> Any:
            yield from views

        def probes(self, part: str, losses: Any, near: bool = False) -> Any:
            for view in views:

                def measure(coded: TeacherOutput, view: TeacherOutput = view) -> dict[str, float]:
                    """The relative error of the tensors, in place of that of a gradient."""
                    what = "scores" if "score" in losses else "features"
                    pairs = list(zip(getattr(view, what), getattr(coded, what)))
                    error = sum(float((a - b).square().sum()) for a, b in pairs)
                    return dict.fromkeys(losses, (error / sum(float(a.square().sum()) for a, _ in pairs)) ** 0.5)

                yield view, measure

        def unexplained(self, what: str, near: bool = False) -> float:
            return 0.3

        def training(self, steps: int) -> Any:
            raise AssertionError("a network is trained")

    made: Any = calibrate_codec(read_options({"type": codec, "quality": 0.5}), Sample())  # type: ignore[arg-type]
    assert made.tables["score_basis"].shape[0] == channels and made.tables["score_basis"].shape[1] <= sketch.RANK
    samples, _ = made.encode(views[0])
    assert len(samples) == 1 and not any(name.startswith("net_") for name in made.tables)


@pytest.mark.parametrize("codec", ["frs", "frs2"])
def test_memory_of_a_wide_calibration(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 channels: a covariance for each of two levels and their eigenvectors took 930 MB."""
    monkeypatch.setattr(sketch, "RANK", 48)
    monkeypatch.setattr(sketch, "SKETCH", 64)
    cost = cost_of(calibrate_wide, codec, 4000, log=tmp_path / "log")
    assert cost.code == 0, cost.errors[-2000:]
    assert cost.grown < 300, cost
