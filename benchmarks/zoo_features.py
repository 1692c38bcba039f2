"""Run a detector without dense class scores as teacher and as student of a feature loss, with random weights.

The sections are those that a user writes for such a teacher: a codec without scores that serves every loss, no score
loss, and a feature loss that needs no richness map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor

from pipeline.codecs.base import Codec, Measure
from pipeline.codecs.packing import stack
from pipeline.codecs.registry import calibrate_codec
from pipeline.records import EncodedBatch, TeacherOutput
from pipeline.sections import Sections
from pipeline.teacher.model import Teacher

FEATURES_ONLY = """
cache = dict(dir="cache", codec=dict(scores=False, profile="universal"))
distill = dict(feature_weight=1.0, score_weight=0, feature_loss="pkd")
"""


class FewViews:
    """A calibration sample in which every part is the same few views.

    The codec's step is chosen by the error of the features, which takes seconds. Stage 1 measures the error of the
    gradient on a probe student, which takes minutes.
    """

    def __init__(self, output: TeacherOutput) -> None:
        self._output = output

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        yield from self._output.each()

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        for exact in self._output.each():
            yield exact, partial(errors_of, losses, exact)

    def unexplained(self, what: str, near: bool = False) -> float:
        return 0.05 if near else 0.2

    def training(self, steps: int) -> Callable[[], None]:
        return lambda: None


def errors_of(losses: Sequence[str], exact: TeacherOutput, coded: TeacherOutput) -> dict[str, float]:
    """Return the norm of the features' error, relative to their norm, as the error of every loss."""
    lost = sum(float((x - y).square().sum()) for x, y in zip(coded.features, exact.features))
    return dict.fromkeys(losses, (lost / sum(float(y.square().sum()) for y in exact.features)) ** 0.5)


def code(sections: Sections, teacher: Teacher, views: Sequence[Tensor]) -> tuple[Codec, EncodedBatch]:
    """Calibrate the config's codec on the views, encode them, and check what it decodes. Raise AssertionError."""
    output = teacher(views)
    codec = calibrate_codec(sections.cache.codec, FewViews(output))
    samples, _ = codec.encode(output)
    for sample in samples:
        codec.check_sample(sample, output.levels)
    batch = stack([codec.read_sample(one, output.levels) for one in samples], [output.levels] * len(samples))
    wrong = {name: ratio for name, ratio in codec.compare(output, batch).items() if not ratio <= 1}
    if wrong:
        raise AssertionError(f"decoded values differ from the teacher's by more than allowed: {wrong}")
    return codec, batch
