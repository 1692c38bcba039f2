"""A class, or a direction of the features, that no calibration view shows is stored like any other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.codecs.base import Codec
from pipeline.codecs.frs.sketch import RANK
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.codecs.summary import list_warnings
from pipeline.records import TeacherOutput
from tests.codecs.test_codec import round_trip
from tests.helpers.outputs import RandomSample, random_output, weighted_error
from tests.helpers.wide_heads import keep_few_directions, without_channel_planes

SIZES, QUALITY, UNSEEN = [(16, 24), (8, 12)], 0.05, 3
FEW = 12  # directions that are kept of the wide heads in these tests


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


def calibrated(kind: str, classes: int) -> Codec:
    return calibrate_codec(read_options({"type": kind, "quality": QUALITY}), Sample(8, classes, SIZES))


def with_class(classes: int) -> TeacherOutput:
    """Return an output with scores of class UNSEEN, and a direction of the features, that no calibration view has."""
    plain = without_class(random_output(1, SIZES, 8, classes, seed=50))
    scores = [s.clone() for s in plain.scores]
    for level in scores:
        level[:, UNSEEN, 2:5, 3:6] = 0.8
    return TeacherOutput([f + 0.5 for f in plain.features], scores, [s.amax(dim=1) for s in scores])


def require_stored(codec: Codec) -> None:
    """Fail where the unseen class is not decoded, or where the errors of new views are far from the promise."""
    exact = with_class(codec.score_channels)
    back = round_trip(codec, exact)
    for level in back.scores:
        assert torch.allclose(level[:, UNSEEN, 2:5, 3:6], torch.tensor(0.8), atol=0.1)
    for what in ("feature", "score"):
        assert weighted_error(what, back, exact) < 2 * QUALITY
    assert not any("directions" in line for line in list_warnings(codec.settings, {}))


@pytest.mark.parametrize("kind", ["frs", "frs2"])
def test_what_calibration_did_not_see_is_stored(kind: str) -> None:
    codec = calibrated(kind, 6)
    require_stored(codec)
    older = {**codec.settings, "score_rank": 5}
    assert any("5 directions of 6" in line for line in list_warnings(older, {}))


@pytest.mark.parametrize("kind", ["frs", "frs2"])
def test_a_wide_head_stores_it_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps few directions, and a plane for each channel. Older caches lack these planes, and lose the class."""
    keep_few_directions(monkeypatch, FEW)
    codec = calibrated(kind, 40)
    assert codec.tables["score_basis"].shape == (40, FEW)
    assert codec.tables["score_expected"].shape == (len(SIZES), FEW + 40, 16)
    assert codec.settings["score_rank"] == codec.score_channels
    require_stored(codec)

    older = without_channel_planes(codec)
    back = round_trip(older, with_class(40))
    assert max(float(level[:, UNSEEN].max()) for level in back.scores) < 0.4
    assert any(f"{FEW} directions of 40" in line for line in list_warnings(older.settings, {}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frs", "frs2"])
def test_objects365_with_nine_anchors(kind: str) -> None:
    codec = calibrated(kind, 3285)
    assert codec.tables["score_basis"].shape == (3285, RANK)
    require_stored(codec)
