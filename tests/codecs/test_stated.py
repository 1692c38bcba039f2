"""A calibration of the frs codec measures no more views than its steps and its promises need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from pipeline.codecs.base import Measure
from pipeline.codecs.frs.stated import LOCATING, OTHERS
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.codecs.summary import FEWEST
from pipeline.records import TeacherOutput
from tests.helpers.outputs import RandomSample, random_output

VIEWS = LOCATING + FEWEST


class CountedSample(RandomSample):
    """Has VIEWS views in each part, and counts the views that each call of `probes` yields."""

    def __init__(self) -> None:
        super().__init__(8, 6, [(16, 24), (8, 12)])
        self.calls: list[tuple[str, str, bool]] = []
        self.yielded: Counter[int] = Counter()  # by call

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        first = {"learning": 0, "choosing": 100, "reported": 200}[part]
        yield from (random_output(1, [(16, 24), (8, 12)], 8, 6, first + n) for n in range(VIEWS))

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        number = len(self.calls)
        self.calls.append((part, losses[0], near))
        for found in super().probes(part, losses, near):
            self.yielded[number] += 1
            yield found


@pytest.mark.parametrize("profile", ["frs", "universal"])
def test_few_views_locate_a_step_and_all_views_correct_it(profile: str) -> None:
    sample = CountedSample()
    codec = calibrate_codec(read_options({"type": "frs", "quality": 0.1, "profile": profile}), sample)
    views: dict[tuple[str, str, bool], list[int]] = {call: [] for call in sample.calls}
    for number, call in enumerate(sample.calls):
        views[call].append(sample.yielded[number])
    assert views["choosing", "score", False] == [LOCATING, VIEWS], "all views measure once"
    assert views["reported", "feature", False] == views["reported", "score", False] == [VIEWS]
    promised = profile == "universal"  # the errors of PKD and CWD, which the near probe measures
    others = {call: counts for call, counts in views.items() if call[1] in ("mgd", "pkd") and call[0] == "reported"}
    few = {("reported", "mgd", False): [OTHERS], ("reported", "pkd", True): [OTHERS]}
    assert others == ({("reported", "pkd", True): [VIEWS]} if promised else few)
    assert all(call[1] == "pkd" for call in views if call[2]), "the near probe measures the losses without adapters"
    assert {"feature", "mgd", "pkd", "cwd", "score"} <= codec.settings["probe_error"].keys()
    assert codec.settings["near_error"].keys() == {"feature", "score"}
    assert 0.08 < codec.settings["probe_error"]["score"] < 0.12, "random views differ little"
