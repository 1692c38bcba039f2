"""What the calibration of frs2 keeps of the learning views, and how often it needs the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipeline.codecs.frs import stated
from pipeline.codecs.frs.fit import learn_statistics
from pipeline.codecs.frs.settings import FrsOptions
from pipeline.codecs.frs.stated import choose_step
from pipeline.codecs.frs.step_search import Located
from pipeline.codecs.frs.weighted import WeightedTransform
from pipeline.codecs.frs2 import fit_residuals, fit_scores
from pipeline.codecs.frs2.fit_levels import fit_levels
from pipeline.codecs.frs2.fit_order import code_kept
from pipeline.codecs.frs2.fit_scores import InputMoments
from pipeline.codecs.frs2.kept import HELD, WINDOW, KeptViews, Place, draw_place
from pipeline.codecs.frs2.predict_scores import MARGIN, net_shapes, run_hidden
from pipeline.codecs.frs2.transform import PredictedTransform
from pipeline.codecs.frs2.windows import TRAINED, Windows, embed
from pipeline.codecs.registry import read_options
from pipeline.records import TeacherOutput
from tests.helpers.related import SIZES, RelatedSample, related_codec, related_output

WIDE = [(50, 77), (25, 39), (13, 20)]


class CountingSample(RelatedSample):
    """Counts the rounds over each part."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rounds: list[str] = []

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        self.rounds.append(part)
        return super().outputs(part)


def kept_views(sizes: list, views: int = 3, scored: bool = True) -> tuple[KeptViews, list[TeacherOutput]]:
    transform = PredictedTransform(99, "frs", {})
    drawn = (related_output(1, sizes, seed=n) for n in range(views))
    # Features that float16 can represent are kept without a loss.
    outputs = [TeacherOutput([f.half().float() for f in d.features], d.scores, d.frs) for d in drawn]
    kept = KeptViews(transform.code_maps, scored)
    assert len(list(kept.watch(outputs))) == views
    return kept, outputs


@pytest.mark.parametrize(("pays", "rounds"), [(9.0, 1), (0.0, 2)])
def test_the_teacher_sees_each_learning_view_once(monkeypatch: pytest.MonkeyPatch, pays: float, rounds: int) -> None:
    """Once more where the network does not pay, for the order of the scores without it."""
    monkeypatch.setattr(fit_scores, "STEPS", 2)
    monkeypatch.setattr(fit_residuals, "PAYS", pays)
    sample = CountingSample()

    codec = related_codec(sample)

    assert sample.rounds.count("learning") == rounds
    assert ("net_output" in codec.tables) == (rounds == 1)


def test_what_is_kept_does_not_grow_with_the_finest_level() -> None:
    kept, outputs = kept_views(WIDE)

    for view, output in zip(kept, outputs):
        (place, *_), (region, *_), finest = view.places, view.regions, view.output.features[0]
        assert (place.height, place.width) == (WINDOW, WINDOW) and max(finest.shape[-2:]) <= WINDOW + 8
        assert torch.equal(view.features(0), region.cut(output.features[0]))
        assert torch.equal(view.features(1), view.regions[1].cut(output.features[1]))
        assert [m.shape[-2:] for m in view.output.frs] == [m.shape[-2:] for m in output.frs]
        assert view.roots is not None and view.output.scores == []
        for level, roots in enumerate(view.roots):
            wanted = view.places[level].cut(output.scores[level][0]).sqrt().half()
            assert torch.equal(roots, wanted)
    unscored, _ = kept_views(WIDE, 1, scored=False)
    assert [view.roots for view in unscored] == [None]


def test_windows_are_whole_blocks_around_what_the_map_says() -> None:
    m = torch.zeros(50, 77)
    m[49, 3] = 1.0

    places = {draw_place(m, WINDOW, torch.Generator().manual_seed(n)) for n in range(4)}

    assert places == {Place(24, 0, 24, 24)}  # 26 is not the first row of a block
    assert Place(24, 0, 24, 24).grown(50, 77) == Place(20, 0, 30, 28)
    assert draw_place(torch.zeros(5, 3), WINDOW, torch.Generator()) == Place(0, 0, 5, 3)


def test_a_kept_view_is_coded_as_the_whole_view() -> None:
    """With the block around it, a window of the finest level decodes as in the whole level."""
    kept, outputs = kept_views(WIDE, 8)
    transform = PredictedTransform(99, "frs", {})
    transform = transform.with_tables(learn_statistics(transform, ("feature",), outputs).tables, 0.05)
    transform = transform.with_tables(fit_levels(transform, 0.05, kept))
    assert transform.tables["level_in"][0].any()

    compared = 0
    for view, output in zip(kept, outputs):
        maps = transform.code_maps(output)
        part, whole = code_kept(transform, view, maps), transform.code_features(output, maps, 0.05)
        if torch.equal(part.used[0], whole.used[0]):
            decoded = embed(part.decoded[0], view.regions[0], WIDE[0])
            assert torch.allclose(*(view.places[0].cut(x) for x in (decoded, whole.decoded[0])), atol=1e-4)
            compared += 1
        assert torch.allclose(part.decoded[1], whole.decoded[1], atol=1e-4)
    assert compared >= 4


def test_parts_of_windows_have_a_weight_of_one() -> None:
    kept, outputs = kept_views(WIDE, HELD)
    transform, moments = PredictedTransform(99, "frs", {}), InputMoments()
    list(moments.watch(outputs))
    transform = transform.with_tables(moments.tables())
    windows = Windows(len(WIDE))
    for number, view in enumerate(kept):
        features = [view.output.features[0].float(), *(f.float() for f in view.output.features[1:])]
        windows.add(number, view, transform.code_maps(view.output), features, transform.tables_on(kept.device))

    level, x, logs, m, inside, roots, share = windows.batch(5, kept.device)

    assert [len(rows) for rows in windows.held] == [1] * 3 and [len(rows) for rows in windows.learning] == [3] * 3
    assert level.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert roots.shape[-2:] == share.shape[-2:] == (TRAINED, TRAINED)
    assert x.shape[-2:] == logs.shape[-2:] == m.shape[-2:] == inside.shape[-2:] == (TRAINED + 4, TRAINED + 4)
    assert torch.allclose(share.sum(dim=(1, 2)), torch.ones(15))
    found = roots.square().amax(dim=1)  # the map is the largest score
    assert torch.allclose(found, m[:, 2:-2, 2:-2], atol=0.02)


def test_the_network_trains_on_what_a_decoder_computes() -> None:
    """Parts of several levels in one batch, without the margin, have the values of each level's own canvas."""
    drawn = torch.Generator().manual_seed(3)
    tables = {name: torch.randn(shape, generator=drawn) for name, shape in net_shapes(3, 8, 6).items()}
    x, logs = torch.randn(3, 8, 12, 13, generator=drawn), torch.randn(3, 12, 13, generator=drawn)
    inside = torch.zeros(3, 1, 12, 13)
    inside[:, :, 2:, :9] = 1.0  # beyond the grid's border, a convolution sees zeros

    trained = run_hidden(tables.__getitem__, torch.tensor([2, 0, 1]), x, logs, inside, padding=0)

    for row, level in enumerate((2, 0, 1)):
        own = [part[row : row + 1] for part in (x, logs, inside)]
        whole = run_hidden(tables.__getitem__, level, *own)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
        assert torch.allclose(trained[row], whole[0], rtol=1e-4, atol=1e-2)


def test_small_levels_are_kept_whole() -> None:
    kept, outputs = kept_views(SIZES, 2)

    for view, output in zip(kept, outputs):
        assert torch.equal(view.output.features[0], output.features[0].half())
        assert view.regions == [Place(0, 0, *size) for size in SIZES]


def test_a_step_that_is_close_needs_no_locating(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, options = RelatedSample(), read_options({"type": "frs", "quality": 0.03})
    assert isinstance(options, FrsOptions)
    transform = WeightedTransform(99, "frs", {})
    learned = learn_statistics(transform, ("feature",), sample.outputs("learning"))
    transform, scale = transform.with_tables(learned.tables), learned.scales["feature"]
    step = choose_step(transform, "feature", options, scale, sample)
    monkeypatch.setattr(stated, "locate_step", lambda *args: pytest.fail("located"))
    monkeypatch.setattr(stated, "find_step", lambda *args: pytest.fail("searched"))

    again = choose_step(transform, "feature", options, scale, sample, Located(1.5 * step, 1.0))

    assert step / 1.2 < again < 1.2 * step
