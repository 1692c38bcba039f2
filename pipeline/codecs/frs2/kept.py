"""What the later rounds of a calibration need of the learning views, so that the teacher sees each view once.

Kept on the host are the features of the coarser levels, and of every level a window, at most WINDOW positions wide and
high, with the scores in it. So memory and time do not grow with the size of a view's finest level. A window's centre is
drawn with the map's probability.

Shapes: C channels, K score channels, (h, w) a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.sketch import WIDE
from pipeline.codecs.frs.transform import BLOCK
from pipeline.records import TeacherOutput

WINDOW = 24
VIEWS, HELD, MOST_HELD = 192, 4, 48  # views to train the network on; every fourth view is held back
SEED = 520
TINY = torch.finfo(torch.float32).tiny


class Place(NamedTuple):
    """A window of a level, in whole blocks of the DCT except at the level's end."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)

    def grown(self, height: int, width: int) -> Place:
        """Return the window with a block more on each side, inside a level of this size."""
        top, left = max(0, self.top - BLOCK), max(0, self.left - BLOCK)
        bottom, right = min(height, self.rows.stop + BLOCK), min(width, self.columns.stop + BLOCK)
        return Place(top, left, bottom - top, right - left)

    def padded(self, margin: int) -> Place:
        """Return the window with a margin, in a level that was padded with the same margin."""
        return Place(self.top, self.left, self.height + 2 * margin, self.width + 2 * margin)

    def cut(self, x: Tensor) -> Tensor:
        """Cut the window out of (..., H, W)."""
        return x[..., self.rows, self.columns]


def draw_place(m: Tensor, side: int, generator: torch.Generator) -> Place:
    """Draw a window of at most side x side positions around a position drawn with the map's probability (H, W)."""
    weights = m.flatten().double() + TINY
    centre = int(torch.multinomial(weights / weights.sum(), 1, generator=generator))
    return place_around(centre, m.shape, side)


def place_around(centre: int, size: Sequence[int], side: int) -> Place:
    """Return a window of at most side x side positions around a position of a grid, given by its flat index."""
    height, width = (min(side, have) for have in size)
    row, column = divmod(centre, size[1])
    top = min(max(row - height // 2, 0), size[0] - height)
    left = min(max(column - width // 2, 0), size[1] - width)
    return Place(top - top % BLOCK, left - left % BLOCK, height, width)


class KeptView(NamedTuple):
    """A view without scores, on the host. Its features are float16; the finest level's are those of `regions[0]`.

    places: the window of each level. regions: the windows with a block around them. roots: sqrt(t) (K, h, w) in the
    windows, as float16; None where the view is not for the network.
    """

    output: TeacherOutput
    places: list[Place]
    regions: list[Place]
    roots: list[Tensor] | None

    def features(self, level: int) -> Tensor:
        """Return the features (1, C, h, w) of a level's region as float32."""
        kept = self.output.features[level]
        return (self.regions[level].cut(kept) if level else kept).float()


class KeptViews:
    """The views of a round, kept for later rounds.

    code: returns the coded maps of a view. scored: whether to keep the scores in the windows, if these are not too wide
    for a network.
    """

    def __init__(self, code: Callable[[TeacherOutput], BatchMaps], scored: bool) -> None:
        self._code, self._scored = code, scored
        self._rows: list[KeptView] = []
        self._networked = [0, 0]  # views to train on, and views held back
        self._generator = torch.Generator().manual_seed(SEED)
        self.device = torch.device("cpu")

    def watch(self, outputs: Iterable[TeacherOutput]) -> Iterator[TeacherOutput]:
        """Yield the outputs, and keep what is needed of each view."""
        for output in outputs:
            self.device = output.frs[0].device
            self._rows.extend(self._keep(view) for view in output.each())
            yield output

    def _keep(self, view: TeacherOutput) -> KeptView:
        maps = [m[0].cpu() for m in self._code(view).floats]
        places = [draw_place(m, WINDOW, self._generator) for m in maps]
        regions = [place.grown(*m.shape) for place, m in zip(places, maps)]
        held = is_held(len(self._rows))
        scored = self._scored and view.scores[0].shape[1] <= WIDE
        networked = scored and self._networked[held] < (VIEWS, MOST_HELD)[held]
        self._networked[held] += networked
        roots = None
        if networked:
            roots = [place.cut(t[0]).float().sqrt().half().cpu() for place, t in zip(places, view.scores)]
        finest, *coarser = view.features
        features = [regions[0].cut(finest).half().clone(), *(f.half() for f in coarser)]
        return KeptView(TeacherOutput(features, [], view.frs).to("cpu"), places, regions, roots)

    def __iter__(self) -> Iterator[KeptView]:
        return (row._replace(output=row.output.to(self.device)) for row in self._rows)


def is_held(view: int) -> bool:
    """Return whether a view is held back, to choose and to check what is fitted to the others."""
    return view % HELD == HELD - 1
