"""A calibration divides its views, says what it does, and says where its figures should not be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import write_json
from pipeline.calibration.calibrate import load_or_calibrate_codec
from pipeline.calibration.sample import CHOOSING, REPORTED, divide, warn_if_few
from pipeline.cli.tables import info_table
from pipeline.codecs.summary import FEWEST, error_at, list_warnings
from pipeline.config import load_config
from pipeline.progress import Silent
from pipeline.stage1.job import open_job


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 31, 32, 47, 48, 64, 128, 256, 10_000])
def test_views_are_divided(count: int) -> None:
    choosing, reported = divide(count)
    assert choosing <= CHOOSING and reported <= REPORTED and count - choosing - reported >= count / 2
    assert (min(choosing, reported) >= FEWEST) == (count >= 4 * FEWEST) == (warn_if_few(count) is None)


def test_stage1_says_what_it_does_and_that_it_has_too_few_views(made: dict[str, Path], tmp_path: Path) -> None:
    cfg, sections = load_config(str(made["frs"]), {"cache.dir": str(tmp_path / "cache")})
    lines: list[str] = []
    job = open_job(cfg, sections, lines.append, Silent())
    write_json(job.root / "plan.json", job.plan)
    load_or_calibrate_codec(job)
    before = next(n for n, line in enumerate(lines) if "expected at least 8 each" in line)
    first, *phases = [n for n, line in enumerate(lines) if line.startswith("codec    ") and line.endswith(" views")]
    assert lines[before].startswith("warning  ") and before == first + 1 < phases[0], (
        "before the first view is computed"
    )
    text = "\n".join(lines)
    for phase in (
        "learning from 4 views",
        "tuning probes of the features on 1 views",
        "choosing the features' step on up to 1 views",
        "choosing the scores' step on up to 1 views",
        "tuning probes of the scores on 1 views",
        "measuring the scores' error on up to 1 views",
        "measuring sizes of 1 views",
    ):
        assert phase in text, phase
    assert "only 1 views chose the steps and 1 reported" in text.rpartition("gradient error on the probe")[2]
    settings = Cache(tmp_path / "cache").codec_manifest()["settings"]
    assert settings["probe_unexplained"] == {"feature": 0.2, "score": 0.4}, "the promised student, whatever the probe"
    assert settings["near_unexplained"] == pytest.approx({"feature": 0.05, "score": 0.1})
    promised = {what: 2 * settings["probe_error"][what] for what in ("feature", "score")}
    assert settings["near_error"] == pytest.approx(promised) and min(promised.values()) > 0
    assert {"feature", "score", "pkd", "cwd", "mgd"} == settings["probe_error"].keys()


FITTED: dict[str, Any] = {
    "type": "frs",
    "quality": "balanced",
    "probe_error": {"feature": 0.03, "score": 0.031, "pkd": 0.5},
    "feature_rank": 8,
    "channels": 8,
    "score_rank": 3,
    "score_channels": 3,
}
STUDENTS = {
    "probe_unexplained": {"feature": 0.15, "score": 0.5},
    "near_error": {"feature": 0.059, "score": 0.061},
    "near_unexplained": {"feature": 0.04, "score": 0.12},
}


def test_a_calibration_that_missed_its_target_says_so() -> None:
    enough, few = {"choosing": 8, "reported": 8}, {"choosing": 8, "reported": 7}
    assert list_warnings(FITTED, {}) == list_warnings(FITTED, enough) == []
    assert "8 views chose the steps and 7 reported" in list_warnings(FITTED, few)[0]
    (line,) = list_warnings({**FITTED, "probe_error": {"feature": 0.03, "score": 0.045}}, enough)
    assert "score loss is 4.50%, beyond the requested 3.00%" in line
    (line,) = list_warnings({**FITTED, "profile": "universal"}, enough)
    assert "pkd" in line
    assert list_warnings({"type": "lossless"}, few) == []


def two_students(near: float) -> dict[str, Any]:
    """Return settings in which a student that misses 10% of the scores has an error of `near`, and 40% one of 3%."""
    return {
        "probe_error": {"score": 0.03},
        "near_error": {"score": near},
        "probe_unexplained": {"score": 0.4},
        "near_unexplained": {"score": 0.1},
    }


@pytest.mark.parametrize(
    ("near", "power"),
    [
        (0.03 * 4**0.25, -0.25),  # the power between the two stated students
        (0.06, -0.5),
        (0.12, -0.5),  # no steeper than the inverse root
        (0.02, 0.0),  # no student is promised less because it explains less than the near one
    ],
)
def test_the_error_of_another_student_is_a_power_of_the_share_that_it_misses(near: float, power: float) -> None:
    for missed in (0.05, 0.1, 0.4, 0.9):
        assert error_at(two_students(near), "score", missed) == pytest.approx(0.03 * (missed / 0.4) ** power)


def test_a_codec_without_two_students_promises_no_other_one() -> None:
    settings = two_students(0.06)
    assert error_at({"probe_error": {"score": 0.03}}, "score", 0.4) is None
    assert error_at({**settings, "near_unexplained": {"score": 0.4}}, "score", 0.4) is None
    assert error_at({**settings, "near_error": {"score": 0.0}}, "score", 0.4) is None
    assert error_at({**settings, "near_unexplained": {"score": 0.0}}, "score", 0.4) is None
    assert error_at(settings, "score", 0.0) is None


def test_info_shows_the_student_and_the_warnings() -> None:
    found: dict[str, Any] = {
        "cache": "c", "format": ["f", 1], "images": 1, "views": 1, "passes": {0: 1}, "bytes": 10, "fp16_bytes": 100,
        "expected_passes": 1, "stored_images": None,
        "bytes_by_tensor": {}, "measured": {}, "teacher": {"name": None, "sha256": "0" * 64}, "recipe": "r",
        "content": "c", "codec": {**FITTED, **STUDENTS}, "calibration": {"choosing": 2, "reported": 1},
    }  # fmt: skip
    text = info_table(found)
    assert "explains 85% and 50% of the features' and scores' variance; one that explains" in text
    assert "has 5.9% and 6.1%" in text
    assert "warning  only 2 views" in text
    old = info_table({**found, "codec": FITTED, "calibration": {}})
    assert "student" not in old and "warning" not in old and "gradient error on the probe 3.0%" in old
