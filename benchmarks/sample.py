"""Generated views to calibrate a codec on, in place of the images of a data set."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from pipeline.calibration.probes import Probes
from pipeline.codecs.base import Codec, Measure
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.records import TeacherOutput
from pipeline.teacher.model import Teacher

SEED = 520
FIRST = {"learning": 0, "choosing": 1000, "reported": 2000}  # number of the first view of each part


class DrawnSample:
    """A calibration sample. `draw(n)` returns view n as (3, h, w) uint8. `learning`, `choosing`: numbers of views."""

    def __init__(self, teacher: Teacher, draw: Callable[[int], Tensor], learning: int, choosing: int) -> None:
        self._teacher, self._draw, self._learning, self._choosing = teacher, draw, learning, choosing
        self._probes = Probes(teacher, SEED, self._views, print)

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        for view in self._views(part):
            yield self._teacher([view])

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        return self._probes(part, losses, near)

    def unexplained(self, what: str, near: bool = False) -> float:
        return self._probes.unexplained(what, near)

    def training(self, steps: int) -> Callable[[], None]:
        return lambda: None

    def _views(self, part: str) -> Iterator[Tensor]:
        count = self._learning if part == "learning" else self._choosing
        yield from (self._draw(FIRST[part] + n) for n in range(count))


LOSSY = ("frs2", "frs")  # the codecs that `calibrate` knows by name, the default of stage 1 first


def add_codec(to: argparse.ArgumentParser) -> None:
    """Add --codec, the codec that a benchmark measures."""
    to.add_argument("--codec", choices=LOSSY, default=LOSSY[0], help="codec to measure (default: %(default)s)")


def calibrate(sample: DrawnSample, quality: str | float, profile: str = "frs", kind: str = "frs") -> Codec:
    """Calibrate a codec of this project as stage 1 does. `quality` can also be 'lossless'. kind: one of LOSSY."""
    lossy = {"type": kind, "quality": quality, "profile": profile}
    codec = calibrate_codec(read_options({"type": "lossless"} if quality == "lossless" else lossy), sample)
    found = {key: value for key, value in codec.settings.items() if "rank" in key or "step" in key or "error" in key}
    print(f"calibrated {codec.name} {quality}: {found}", flush=True)
    return codec
