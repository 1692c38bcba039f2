"""The frs2 codec: round trips, predictions that pay and that do not, batches, stored settings, forged tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.budget import BUDGET
from pipeline.cache.canonical import read_json
from pipeline.codecs.base import Codec
from pipeline.codecs.frs.fit import learn_statistics
from pipeline.codecs.frs2 import fit_residuals, fit_scores
from pipeline.codecs.frs2.codec import Frs2
from pipeline.codecs.frs2.fit_scores import InputMoments, train_network
from pipeline.codecs.frs2.inputs import enlarge
from pipeline.codecs.frs2.kept import KeptViews
from pipeline.codecs.frs2.transform import PredictedTransform
from pipeline.codecs.frs2.windows import Windows
from pipeline.codecs.group import load_codec, save_codec
from pipeline.codecs.packing import stack
from pipeline.errors import CodecError, CorruptCache
from pipeline.records import EncodedBatch, TeacherOutput
from tests.helpers.outputs import calibrated_codec, weighted_error
from tests.helpers.related import CHANNELS, CLASSES, SIZES, STEPS, RelatedSample, related_codec, related_output

ODD = [(9, 14), (5, 7), (3, 4)]  # half of 9 is 4.5, and the last level is smaller than a block
PREDICTED = ("level_in", "net_output")
FEW = 10  # steps of a network that need not learn


@pytest.fixture(scope="module", autouse=True)
def short_training() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_scores, "STEPS", FEW)
        yield


@pytest.fixture(scope="module")
def codec() -> Frs2:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_scores, "STEPS", STEPS)
        patch.setattr(fit_residuals, "PAYS", 9.0)
        made = related_codec()
    assert isinstance(made, Frs2)
    return made


def encoded(codec: Codec, *outputs: TeacherOutput) -> EncodedBatch:
    samples = [sample for output in outputs for sample in codec.encode(output)[0]]
    levels = [output.levels for output in outputs for _ in output.frs[0]]
    return stack([codec.read_sample(sample, grids) for sample, grids in zip(samples, levels)], levels)


def tokens(codec: Codec, output: TeacherOutput, what: str) -> int:
    return sum(len(codec.read_sample(sample, output.levels)[what]) for sample in codec.encode(output)[0])


def test_predictions_pay_where_levels_are_related(codec: Frs2) -> None:
    without, fresh = related_codec(type="frs"), related_output(2, SIZES, seed=300)

    assert set(PREDICTED) <= codec.tables.keys() and not set(PREDICTED) & without.tables.keys()
    assert tokens(codec, fresh, "features") < 0.8 * tokens(without, fresh, "features")
    for what in ("feature", "score"):
        assert weighted_error(what, codec.decode(encoded(codec, fresh)), fresh) < 1.5 * 0.03


def test_scores_that_the_network_predicts_take_few_tokens(codec: Frs2) -> None:
    """The scores are those that another network gives for the decoded features; the codec then has this network."""
    tables, generator = dict(codec.tables), np.random.default_rng(0)
    tables["net_output"] = generator.normal(size=tables["net_output"].shape).astype(np.float16)
    other = Frs2(codec.options, codec.calibration, tables)
    exact = related_output(1, SIZES, seed=313)
    maps = other.transform.code_maps(exact)
    features = other.transform.code_features(exact, maps, codec.calibration.feature_step).decoded
    roots = other.transform.predict_scores(features, maps)
    exact = TeacherOutput(exact.features, [u.square() for u in roots], exact.frs)

    assert tokens(other, exact, "scores") == 0 < tokens(codec, exact, "scores")
    decoded = other.decode(encoded(other, exact))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(decoded.scores, exact.scores))
    assert all(torch.allclose(s.amax(1), m, atol=1e-4) for s, m in zip(decoded.scores, maps.floats))


def test_the_network_learns_scores_that_follow_from_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_scores, "STEPS", 2 * STEPS)
    transform = PredictedTransform(99, "frs", {})
    outputs = [related_output(1, SIZES, seed=n) for n in range(12)]
    tables = learn_statistics(transform, ("feature", "score"), outputs).tables
    moments, windows, views = InputMoments(), Windows(len(SIZES)), KeptViews(transform.code_maps, True)
    assert len(list(moments.watch(views.watch(outputs)))) == 12
    inputs = transform.with_tables(tables | moments.tables())
    for number, view in enumerate(views):
        windows.add(
            number, view, transform.code_maps(view.output), view.output.features, inputs.tables_on(views.device)
        )
    steps: list[int] = []

    def announce(count: int) -> Any:
        return lambda: steps.append(count)

    network = train_network(windows, CHANNELS, CLASSES, torch.device("cpu"), announce)

    assert steps == [2 * STEPS] * (2 * STEPS)
    assert [len(rows) for rows in windows.learning] == [9] * 3 and [len(rows) for rows in windows.held] == [3] * 3
    trained = transform.with_tables(inputs.tables | network)
    fresh = related_output(1, SIZES, seed=400)
    maps = trained.code_maps(fresh)
    coded = trained.code_scores(fresh, maps, 1.0, trained.predict_scores(fresh.features, maps))
    assert float(coded.left[0]) < 0.9 * float(coded.plain[0])


def test_predictions_that_do_not_pay_are_left_out() -> None:
    assert not set(PREDICTED) & calibrated_codec("frs2").tables.keys()
    assert set(PREDICTED) & related_codec().tables.keys() == {"level_in"}  # its network has hardly learnt


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("off", "prefix"), [("predict_levels", "level_"), ("predict_scores", "net_"), ("scores", "net_")]
)
def test_each_prediction_can_be_switched_off(off: str, prefix: str) -> None:
    sample = RelatedSample()

    other = related_codec(sample, **{off: False})

    assert not any(name.startswith(prefix) for name in other.tables)
    assert sample.trained == ([FEW] if off == "predict_levels" else [])
    fresh = related_output(1, ODD, seed=301)
    decoded = other.decode(encoded(other, fresh))
    assert weighted_error("feature", decoded, fresh) < 0.05
    assert off == "scores" or weighted_error("score", decoded, fresh) < 0.05


@pytest.mark.parametrize("sizes", [SIZES, ODD, [(1, 1)] * 3, [(40, 6), (20, 3), (10, 2)]])
def test_each_coefficient_is_within_half_a_step(codec: Frs2, sizes: list) -> None:
    exact = related_output(2, sizes, seed=302)

    ratios = codec.compare(exact, encoded(codec, exact))

    assert all(ratio <= 1 + 1e-3 for ratio in ratios.values()) and ratios.keys() == {"features", "scores", "frs"}
    changed = TeacherOutput([1.5 * f for f in exact.features], exact.scores, exact.frs)
    assert sizes[0] == (1, 1) or codec.compare(changed, encoded(codec, exact))["features"] > 1.25


@pytest.mark.parametrize("sizes", [ODD, [(8, 24), (4, 12), (2, 6)], [(5, 5), (2, 2), (1, 1)]])
def test_a_sample_does_not_depend_on_its_batch(codec: Frs2, sizes: list) -> None:
    """Also where a level has more than twice the rows of the next one."""
    large, small = related_output(1, SIZES, seed=303), related_output(1, sizes, seed=304)

    alone, batch = codec.decode(encoded(codec, small)), codec.decode(encoded(codec, large, small))

    for one, both in zip(alone.features + alone.scores + alone.frs, batch.features + batch.scores + batch.frs):
        h, w = one.shape[-2:]
        assert torch.allclose(one[0], both[1, ..., :h, :w], rtol=1e-5, atol=1e-5)


def test_enlarging_repeats_the_border_of_each_sample() -> None:
    x = torch.rand(1, 2, 3, 4)
    wide = torch.full((2, 2, 5, 6), 1e9)
    wide[1, :, :3, :4] = x[0]

    alone, batch = enlarge(x, [(3, 4)], (7, 8)), enlarge(wide, [(5, 6), (3, 4)], (9, 12))

    assert torch.allclose(alone[0], batch[1, :, :7, :8]) and torch.equal(alone[0, :, 6], alone[0, :, 5])
    assert torch.allclose(alone[0, :, 2, 2], (x[0, :, :2, :2] * torch.tensor([[1, 3], [3, 9]]) / 16).sum((1, 2)))


def test_an_unusual_sample_does_without_predictions(codec: Frs2) -> None:
    """It is stored as by frs, so it costs no more than a few bytes of flags."""
    usual = related_output(1, SIZES, seed=305)
    signs = [(-1) ** n for n in range(len(SIZES))]
    unusual = TeacherOutput([sign * f for sign, f in zip(signs, usual.features)], usual.scores, usual.frs)

    flags = [codec.encode(output)[0][0]["frs"][: len(SIZES)] for output in (usual, unusual)]

    assert flags[0].tolist() == [3, 3, 2] and flags[1][0] & 1 == 0
    assert weighted_error("feature", codec.decode(encoded(codec, unusual)), unusual) < 0.05


@pytest.mark.parametrize("off", [None, "predict_levels", "predict_scores"])
def test_a_decoder_has_what_the_encoder_predicts_from(codec: Frs2, off: str | None) -> None:
    """Also in a batch of which only some samples use a prediction."""
    one = related_codec(**{off: False}) if off else codec
    usual = related_output(1, SIZES, seed=305)
    features = [torch.cat([f, (-1) ** n * f]) for n, f in enumerate(usual.features)]
    scores = [torch.cat([s, s.roll(1, dims=1)]) for s in usual.scores]
    exact = TeacherOutput(features, scores, [torch.cat([m, m]) for m in usual.frs])
    batch = encoded(one, exact)

    transform, step, maps = one.transform, one.calibration.step, one.transform.code_maps(exact)
    features = transform.code_features(exact, maps, step("feature")).decoded
    scores = transform.code_scores(exact, maps, step("score"), transform.predict_coded(exact, maps)).decoded
    decoded = one.decode(batch)

    flags = batch.arrays["frs"][:, : len(SIZES)]
    assert off or all((flags[0] & bit).any() and not (flags[1] & bit).all() for bit in (1, 2))
    for wanted, found in ((features, decoded.features), (scores, decoded.scores)):
        for a, b in zip(wanted, found, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("network", [True, False])
def test_what_is_not_decoded_does_not_change_what_is_coded(codec: Frs2, network: bool) -> None:
    """Coded one tensor at a time or together, and with a prediction of zeros in place of none."""
    one = codec if network else related_codec(predict_scores=False)
    exact, step = related_output(2, SIZES, seed=306), one.calibration.step
    transform, maps = one.transform, one.transform.code_maps(exact)
    roots = transform.predict_coded(exact, maps)
    assert (roots is not None) == network
    zeros = roots or [transform.mean("score", level, maps) for level in range(len(SIZES))]
    whole = {
        "feature": transform.code_features(exact, maps, step("feature")),
        "score": transform.code_scores(exact, maps, step("score"), zeros),
    }
    found = one._code(exact, maps)

    for what, coded in whole.items():
        alone = transform.code(exact, maps, what, step(what))
        assert len(coded.decoded) == len(SIZES) and not alone.decoded
        for other in (alone, found[what]):
            for name in ("scaled", "steps", "used", "plain", "left"):
                assert all(map(torch.equal, getattr(coded, name), getattr(other, name)))


@pytest.mark.parametrize("flags", [[4, 0, 0], [0, 0, 255]])
def test_flags_that_no_encoder_writes_are_refused(codec: Frs2, flags: list) -> None:
    output = related_output(1, SIZES, seed=307)
    (sample,), _ = codec.encode(output)
    forged = sample["frs"].copy()
    forged[: len(SIZES)] = flags

    with pytest.raises(CorruptCache, match="flags"):
        codec.check_sample({**sample, "frs": forged}, output.levels)
    with pytest.raises(CorruptCache):
        codec.check_sample({**sample, "frs": forged[:-1]}, output.levels)
    with pytest.raises(CorruptCache):
        codec.check_sample({name: array for name, array in sample.items() if name != "frs"}, output.levels)


def test_another_number_of_levels_is_refused(codec: Frs2) -> None:
    output = related_output(1, SIZES, seed=311)
    (sample,), _ = codec.encode(output)
    fewer = output.levels[:-1]
    row = np.zeros(2 * len(fewer) + sum(h * w for h, w in fewer), np.uint8)

    with pytest.raises(CorruptCache, match="on 2 FPN levels do not fit this codec"):
        codec.read_sample({**sample, "frs": row}, fewer)


def test_nothing_that_is_parsed_depends_on_a_prediction(codec: Frs2) -> None:
    """A decoder with bfloat16 tables reads the same symbols, and its error is nearly the same."""
    fresh = related_output(2, SIZES, seed=308)
    batch = encoded(codec, fresh)
    rounded = {
        name: torch.from_numpy(t).bfloat16().to(torch.from_numpy(t).dtype).numpy()
        if "_" in name and t.dtype != np.int16
        else t
        for name, t in codec.tables.items()
        if name.startswith(("level_", "net_"))
    }

    other = Frs2(codec.options, codec.calibration, {**codec.tables, **rounded})

    for what in ("feature", "score"):
        errors = [weighted_error(what, one.decode(batch), fresh) for one in (codec, other)]
        assert errors[0] != errors[1] and errors[1] < 1.2 * errors[0]


def test_calibrating_again_gives_the_same_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_residuals, "PAYS", 9.0)
    one, two = related_codec(), related_codec()

    assert one.settings == two.settings and set(PREDICTED) <= one.tables.keys() == two.tables.keys()
    assert all(np.array_equal(two.tables[name], table) for name, table in one.tables.items())


def test_settings_and_tables_survive_in_the_cache(tmp_path: Path, codec: Frs2) -> None:
    save_codec(codec, tmp_path, {})
    again = load_codec(tmp_path, read_json(tmp_path / "codec.json"))
    exact = related_output(2, SIZES, seed=309)

    one, two = (c.decode(encoded(c, exact)) for c in (codec, again))

    assert again.settings == codec.settings and isinstance(again, Frs2)
    assert all(torch.equal(a, b) for a, b in zip(one.features + one.scores, two.features + two.scores))


FORGED = {
    "level_in": np.zeros((2, 8, 9), np.float16),
    "level_near": np.zeros((2, 8, 8, 8), np.float16),
    "level_bias": np.full((2, 8), np.nan, np.float32),
    "net_first": np.zeros((64, 9, 3, 5), np.float16),
    "net_level": np.zeros((2, 64), np.float32),
    "net_output": None,
    "net_bias": np.zeros(64, np.int16),
    "net_other": np.zeros(3, np.float32),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_tables_are_refused(tmp_path: Path, codec: Frs2, name: str) -> None:
    tables = dict(codec.tables)
    forged = FORGED[name]
    if forged is None:
        del tables[name]
    else:
        tables[name] = forged
    save_codec(Frs2(codec.options, codec.calibration, tables), tmp_path, {})

    with pytest.raises(CorruptCache, match=name):
        load_codec(tmp_path, read_json(tmp_path / "codec.json"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("levels", "classes"), [(1, 3), (2, 1), (5, 80)])
def test_any_number_of_levels_and_scores(levels: int, classes: int) -> None:
    sizes = [(max(1, 16 >> n), max(1, 24 >> n)) for n in range(levels)]
    codec = related_codec(RelatedSample(8, classes, sizes, 8))
    exact = related_output(1, [(h + 1, w + 2) for h, w in sizes], 8, classes, 310)

    decoded = codec.decode(encoded(codec, exact))

    assert weighted_error("feature", decoded, exact) < 0.1 and weighted_error("score", decoded, exact) < 0.1


def test_the_universal_profile_predicts_too() -> None:
    codec, fresh = related_codec(profile="universal"), related_output(1, SIZES, seed=311)

    assert "level_in" in codec.tables
    assert all(ratio <= 1 + 1e-3 for ratio in codec.compare(fresh, encoded(codec, fresh)).values())


def test_a_level_without_weight_decodes_to_finite_values(codec: Frs2) -> None:
    exact = related_output(1, SIZES, seed=312)
    blank = TeacherOutput(
        exact.features,
        [s * (n > 0) for n, s in enumerate(exact.scores)],
        [m * (n > 0) for n, m in enumerate(exact.frs)],
    )

    decoded = codec.decode(encoded(codec, blank))

    assert all(t.isfinite().all() for t in decoded.features + decoded.scores) and not decoded.frs[0].any()


def test_tokens_and_tables_have_a_limit(codec: Frs2, monkeypatch: pytest.MonkeyPatch) -> None:
    output = related_output(1, SIZES)
    (sample,), _ = codec.encode(output)
    few = replace(BUDGET, tokens=10)
    monkeypatch.setattr("pipeline.codecs.frs2.ans_stream.BUDGET", few)
    with pytest.raises(CorruptCache, match=r"array features: entropy-coded symbols: expected at most 10, found \d+"):
        codec.read_sample(sample, output.levels)
    monkeypatch.setattr("pipeline.codecs.frs.tokens.BUDGET", few)
    with pytest.raises(CodecError, match=r"features: tokens of a view: expected at most 10, found \d+; use a larger"):
        codec.encode(output)
    levels, width, _ = codec.tables["feature_basis"].shape
    wide = {"feature_basis": np.zeros((levels, width, 20_000), np.float32)}
    with pytest.raises(ValueError, match=f"feature_basis: expected at most {width} planes, found 20000"):
        Frs2(codec.options, codec.calibration, {**codec.tables, **wide}).validate()
