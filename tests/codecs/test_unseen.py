"""A class, or a direction of the features, that no calibration view shows is stored like any other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.codecs.summary import list_warnings
from pipeline.records import TeacherOutput
from tests.codecs.test_codec import round_trip
from tests.helpers.outputs import RandomSample, random_output, weighted_error

SIZES, QUALITY, UNSEEN = [(16, 24), (8, 12)], 0.05, 3


def without_class(output: TeacherOutput) -> TeacherOutput:
    """Return the output with almost no score of class UNSEEN, and nothing in one direction of the features."""
    scores = [s.clone() for s in output.scores]
    for level in scores:
        level[:, UNSEEN] = 1e-5 * level[:, 0]
    features = [f - f.mean(dim=1, keepdim=True) for f in output.features]
    return TeacherOutput(features, scores, [s.amax(dim=1) for s in scores])


class Sample(RandomSample):
    """Calibration views without a class."""

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        return map(without_class, super().outputs(part))


@pytest.mark.parametrize("kind", ["frs", "frs2"])
def test_what_calibration_did_not_see_is_stored(kind: str) -> None:
    codec = calibrate_codec(read_options({"type": kind, "quality": QUALITY}), Sample(8, 6, SIZES))
    plain = without_class(random_output(1, SIZES, 8, 6, seed=50))
    scores = [s.clone() for s in plain.scores]
    for level in scores:
        level[:, UNSEEN, 2:5, 3:6] = 0.8
    features = [f + 0.5 for f in plain.features]
    exact = TeacherOutput(features, scores, [s.amax(dim=1) for s in scores])
    back = round_trip(codec, exact)
    for level in back.scores:
        assert torch.allclose(level[:, UNSEEN, 2:5, 3:6], torch.tensor(0.8), atol=0.1)
    for what in ("feature", "score"):
        assert weighted_error(what, back, exact) < 2 * QUALITY
    assert not any("directions" in line for line in list_warnings(codec.settings, {}))
    older = {**codec.settings, "score_rank": 5}
    assert any("5 directions of 6" in line for line in list_warnings(older, {}))
