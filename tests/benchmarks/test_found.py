"""The figures of docs/results/codec_found.json follow from each other, and probe.md has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.found import compare_rules, expect, table

RESULTS = Path(__file__).resolve().parents[2] / "docs/results"
ROWS: list[dict[str, Any]] = json.loads((RESULTS / "codec_found.json").read_text())["rows"]
ROW = {
    "teacher": "fcos", "student": "epoch_2", "codec": "frs2", "calibration_views": 96, "quality": "balanced",
    "loss": "feature", "megapixels": 0.05, "missed": 0.8, "missed_probe": 0.2, "missed_near": 0.05,
    "requested": 0.03, "stated": 0.03, "stated_near": 0.06, "found": 0.03, "found_plain": 0.006, "expected": 1.0,
    "kb_view": 6.0, "kb_features": 3.0, "kb_scores": 2.0, "kb_map": 1.0,
}  # fmt: skip


def test_what_is_expected_of_a_student_follows_from_its_row() -> None:
    row = expect(ROW)
    assert row["expected"] == pytest.approx(0.015), "it misses four times the promised share"
    assert row["found_over_expected"] == pytest.approx(2.0)


def test_a_line_has_the_figures_of_features_and_scores() -> None:
    scores = expect({**ROW, "loss": "score", "missed": 0.2})
    text = table([expect(ROW), scores], "frs2").splitlines()[-1]
    assert text == (
        "| demo, FCOS | 146 steps | 96 | 80%, 20% | 0.05 | 6.0: 3.0, 2.0, 1.0 | 3.0%, 3.0% | 1.5%, 3.0% | 3.0%, 3.0% | "
        "0.6%, 0.6% | 2.00, 1.00 |"
    )


def test_probe_md_has_the_tables_of_the_results() -> None:
    page = (RESULTS / "probe.md").read_text()
    for row in ROWS:
        expected = expect(row)["expected"]
        assert expected == pytest.approx(row["expected"]), "run benchmarks/found.py"
    for codec in {row["codec"] for row in ROWS}:
        assert table(ROWS, codec) in page
    assert compare_rules(ROWS) in page


def test_rules_are_compared_by_their_distance_from_what_was_found() -> None:
    near = {**ROW, "missed": 0.05, "found": 0.24}  # four times the error of the near student
    lines = {line.split(" | ")[0].strip("| *"): line for line in compare_rules([ROW, near]).splitlines()[2:]}
    assert lines["the stated error, with the inverse root of the share"].endswith("| 0 of 2 | 4.00 | 2.99 | 2.83 |")
    assert lines["the stated error, for all students"].endswith("| 1 of 2 | 8.00 | 4.35 | 2.83 |")
