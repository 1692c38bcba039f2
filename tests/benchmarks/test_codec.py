"""The arithmetic of benchmarks/codec.py: a row for each scale and loss, with errors and bytes of the right views."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import codec as benchmark

SETTINGS = {
    "probe_error": {"feature": 0.02, "score": 0.04, "pkd": 0.5},
    "near_error": {"feature": 0.04, "score": 0.08},
    "probe_unexplained": {"feature": 0.2, "score": 0.4},
    "near_unexplained": {"feature": 0.05, "score": 0.1},
    "feature_step": 1.5,
    "score_step": 0.25,
}
MISSED = {"feature": 0.05, "score": 0.8}
FOUND = {
    "err_features": 0.06, "err_scores": 0.03, "err_total": 0.05,
    "uncertainty_features": 0.01, "uncertainty_scores": 0.005, "plain_features": 0.07, "plain_scores": 0.02,
    "kb_view": 10.0, "kb_features": 6.0, "kb_scores": 3.0, "kb_map": 1.0, "kb_megapixel": 100.0,
}  # fmt: skip
CODEC: Any = SimpleNamespace(name="frs2", settings=SETTINGS, allowed_error=0.03, channels=8, score_channels=3)
JOB: Any = SimpleNamespace(
    teacher=None,
    images=range(50),
    sections=SimpleNamespace(
        distill=SimpleNamespace(feature_weight=2.0, score_weight=5.0),
        teacher=SimpleNamespace(checkpoint="folder/big.pth", name=None),
    ),
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replace the measurements by fixed figures. Return the arguments of `measure`."""
    calls: list[tuple[Any, ...]] = []

    def measure(*given: Any) -> dict[str, Any]:
        calls.append(given)
        return {"frs2": FOUND}

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "missed_share", lambda loss, *_: MISSED[loss])
    return calls


def test_a_row_compares_requested_stated_expected_and_found(measured: list[tuple[Any, ...]]) -> None:
    views = [torch.zeros(3, 500, 1000), torch.zeros(3, 500, 2000)]
    features, scores = benchmark.measure_views(CODEC, JOB, None, views)  # type: ignore[arg-type]
    assert measured[0][4] == {"feature": 2.0, "score": 5.0} and measured[0][3] is views
    assert features["megapixels"] == scores["megapixels"] == 0.75
    assert (features["loss"], features["found"], features["stated"], features["stated_near"]) == (
        "feature", 0.06, 0.02, 0.04,
    )  # fmt: skip
    assert (scores["loss"], scores["found"], scores["missed"], scores["missed_probe"]) == ("score", 0.03, 0.8, 0.4)
    assert features["requested"] == 0.03 and features["found_over_requested"] == pytest.approx(2.0)
    assert features["expected"] == pytest.approx(0.04), "it misses as much as the near student"
    assert features["found_over_expected"] == pytest.approx(1.5)
    assert scores["expected"] == pytest.approx(0.04 / 2**0.5), "it misses twice as much as the usual student"
    assert (features["uncertainty"], scores["found_plain"]) == (0.01, 0.02)
    assert features["kb_scores"] == 3.0 and features["steps"] == {"feature_step": 1.5, "score_step": 0.25}


def test_the_same_codec_is_measured_at_every_scale(
    measured: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, ...]] = []

    def draw(job: Any, count: int, dataset: Any = None, scale: Any = None) -> list[torch.Tensor]:
        drawn.append((count, dataset, scale))
        return [torch.zeros(3, *(scale or (100, 200)))] * count

    cfg = SimpleNamespace(val_dataloader=SimpleNamespace(dataset="val set"))
    monkeypatch.setattr(benchmark, "open_config", lambda *_: (cfg, JOB.sections))
    monkeypatch.setattr(benchmark, "open_job", lambda *_: JOB)
    monkeypatch.setattr(benchmark, "calibrate", lambda _: (CODEC, SETTINGS))
    monkeypatch.setattr(benchmark, "Student", lambda *_: None)
    monkeypatch.setattr(benchmark, "draw", draw)
    args = Namespace(
        student=[Path("folder/small.pth"), Path("tiny.pth")],
        adapters=None,
        codec="frs2",
        views=4,
        calibration_views=96,
        measure_at=[(300, 400)],
    )
    rows = benchmark.rows_of(args, "balanced")
    assert drawn == [(4, "val set", None), (4, "val set", (300, 400))], "no calibration image reports"
    assert [(row["student"], row["megapixels"], row["loss"]) for row in rows] == [
        (student, size, loss) for student in ("small", "tiny") for size in (0.02, 0.12) for loss in MISSED
    ]
    assert {(row["teacher"], row["codec"], row["quality"]) for row in rows} == {("big", "frs2", "balanced")}
    assert all(row["calibration_views"] == 50 for row in rows), "the data set has no more images"
