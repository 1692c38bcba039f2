"""The arithmetic of benchmarks/equal_error.py."""

from __future__ import annotations

import pytest

from benchmarks.equal_error import interpolate, with_steps
from tests.helpers.outputs import calibrated_codec


@pytest.mark.parametrize("target", [0.01, 0.02, 0.03, 0.1])
def test_bytes_are_interpolated_to_the_target_error(target: float) -> None:
    """Bytes that fall with the error to the power of -0.8, inside the points and outside."""
    points = [(error, 5 * error**-0.8) for error in (0.04, 0.015, 0.025)]

    assert interpolate(points, target) == pytest.approx(5 * target**-0.8)


def test_only_the_neighbours_of_the_target_are_used() -> None:
    assert interpolate([(0.01, 8.0), (0.02, 4.0), (0.04, 1.0)], 0.02) == pytest.approx(4)
    assert interpolate([(0.01, 8.0), (0.02, 4.0), (0.04, 1.0)], 0.03) < 4 * (0.02 / 0.03) ** 1.5


def test_steps_are_multiplied_for_each_tensor() -> None:
    codec = calibrated_codec("frs")

    other = with_steps(codec, {"feature": 2.0, "score": 0.5})

    assert other.calibration.feature_step == 2 * codec.settings["feature_step"]
    assert other.calibration.score_step == codec.settings["score_step"] / 2 and other.tables is codec.tables
