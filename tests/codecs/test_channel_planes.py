"""The planes of single channels: exact transforms and errors, whole batches, and tables that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.launches import counts
from pipeline.budget import BUDGET
from pipeline.cache.plausible import most_bytes
from pipeline.codecs.frs import channel_planes
from pipeline.codecs.frs.codec import Frs
from pipeline.codecs.frs.order import FREQUENCIES
from pipeline.codecs.frs.tables import limit_sizes, order_bytes
from pipeline.codecs.packing import stack
from pipeline.records import EncodedBatch, TeacherOutput
from tests.helpers.outputs import calibrated_codec, random_output
from tests.helpers.wide_heads import keep_few_directions, without_channel_planes

CLASSES, FEW = 40, 12
SIZES = [(16, 24), (8, 12)]
VIEWS = [SIZES, [(5, 30), (3, 15)], [(13, 7), (7, 4)], [(16, 23), (8, 12)]]
MOST = 300  # operations that a GPU would be given


@pytest.fixture(scope="module", params=["frs", "frs2"])
def codec(request: pytest.FixtureRequest) -> Iterator[Frs]:
    with pytest.MonkeyPatch.context() as patch:
        keep_few_directions(patch, FEW)
        made = calibrated_codec(request.param, classes=CLASSES, quality=0.1)
    assert isinstance(made, Frs) and made.tables["score_expected"].shape[1] == FEW + CLASSES
    yield made


def outputs() -> list[TeacherOutput]:
    return [random_output(1, sizes, 8, CLASSES, seed) for seed, sizes in enumerate(VIEWS)]


def stored(codec: Frs, exact: Sequence[TeacherOutput]) -> EncodedBatch:
    levels = [output.levels for output in exact]
    samples = [codec.read_sample(codec.encode(output)[0][0], own) for output, own in zip(exact, levels)]
    return stack(samples, levels)


@pytest.mark.parametrize("size", [(8, 12), (7, 5)])
def test_coefficients_are_those_of_the_formula(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of a few channels, which end inside of the last one."""
    monkeypatch.setattr(channel_planes, "PART", 7)
    basis = torch.linalg.qr(torch.randn(CLASSES, FEW))[0]
    x = torch.randn(2, CLASSES, *size)

    found = channel_planes.project(basis, x)

    padded = torch.nn.functional.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))
    rotated = torch.einsum("kr,bkhw->brhw", basis, padded)
    left = padded - torch.einsum("kr,brhw->bkhw", basis, rotated)
    assert torch.allclose(found, channel_planes.dct(torch.cat([rotated, left], dim=1)), atol=1e-5)
    assert torch.allclose(channel_planes.unproject(basis, found, size), x, atol=1e-5)
    assert found.square().sum() == pytest.approx(float(x.square().sum()), rel=1e-5)


def test_a_decoder_adds_what_the_encoder_found(codec: Frs) -> None:
    """Decoding from the nonzero symbols alone gives the tensors of all coefficients."""
    exact = outputs()
    batch = stored(codec, exact)
    maps, transform = codec.coded_maps(batch), codec.transform
    steps = transform.step_sizes("score", maps, codec.calibration.step("score"))
    planes = codec.planes(batch, maps, "score")
    assert any(bool(level[:, FEW:].any()) for level in planes) and any(bool(level[:, :FEW].any()) for level in planes)

    wanted = transform.rebuild((q * d[:, None, None, None] for q, d in zip(planes, steps.T)), maps, "score")

    for a, b, m in zip(codec.decode(batch).scores, wanted, maps.floats, strict=True):
        assert torch.allclose(a * (m > 0)[:, None], b * (m > 0)[:, None], atol=1e-5)


def test_a_sample_has_the_same_bits_alone_and_in_a_batch(codec: Frs) -> None:
    exact = outputs()
    together = codec.decode(stored(codec, exact))
    for number, output in enumerate(exact):
        alone = codec.decode(stored(codec, [output]))
        for a, b, (h, w) in zip(together.scores, alone.scores, output.levels, strict=True):
            assert torch.equal(a[number, :, :h, :w], b[0])


def test_operations_do_not_grow_with_the_batch(codec: Frs) -> None:
    found = []
    for size in (1, 2, 8):
        batch = stored(codec, (outputs() * 2)[:size])
        codec.decode(batch)  # constants reach a device once
        found.append(counts(lambda batch=batch: codec.decode(batch), torch.device("cpu"))["operations"])
    assert len(set(found)) == 1 and found[0] <= MOST


def test_the_encoder_does_not_depend_on_the_batch(codec: Frs) -> None:
    output = random_output(3, [(13, 24), (7, 12)], 8, CLASSES, 5)
    together = codec.encode(output)[0]
    for number, one in enumerate(output.each()):
        for name, array in codec.encode(one)[0][0].items():
            assert together[number][name].tobytes() == array.tobytes()


def test_the_measured_error_is_that_of_the_scores(codec: Frs) -> None:
    """Rounding errors of both kinds of planes are not orthogonal, so their energies do not simply add up."""
    output, transform = random_output(2, SIZES, 8, CLASSES, 77), codec.coarser(3.0).transform
    maps, coarse = transform.code_maps(output), codec.coarser(3.0)
    exact, _ = transform.coefficients(output, maps, "score")
    steps = transform.step_sizes("score", maps, coarse.calibration.step("score"))[..., None, None, None].unbind(1)

    def residual(level: int, coefficients: Tensor) -> Tensor:
        return transform.unproject("score", level, coefficients, SIZES[level]) / steps[level]

    rounded = [(c / d).round() * d for c, d in zip(exact, steps)]
    whole = [residual(n, c) for n, c in enumerate(exact)]
    lost = sum(float((x - residual(n, q)).square().sum()) for n, (x, q) in enumerate(zip(whole, rounded)))
    wanted = (lost / sum(float(x.square().sum()) for x in whole)) ** 0.5
    apart = sum(float(((c - q) / d).square().sum()) for c, q, d in zip(exact, rounded, steps))

    assert coarse.encode(output)[1]["scores_error"] == pytest.approx(wanted, rel=1e-4)
    assert abs(apart / lost - 1) > 1e-3, "the sum of both energies would pass as well"


def test_compare_finds_a_change_of_one_channel(codec: Frs) -> None:
    exact = random_output(1, SIZES, 8, CLASSES, 3)
    batch = stored(codec, [exact])
    assert codec.compare(exact, batch)["scores"] <= 1 + 1e-3
    scores = [s.clone() for s in exact.scores]
    scores[0][:, 7, 2:5, 3:6] = 0.9 * exact.frs[0][:, 2:5, 3:6]
    assert codec.compare(replace(exact, scores=scores), batch)["scores"] > 1.25


def test_tables_of_older_versions_are_decoded_as_before(codec: Frs) -> None:
    """With the planes of the directions alone, scores are the mean plus U times these planes."""
    older = without_channel_planes(codec)
    exact = random_output(1, SIZES, 8, CLASSES, 4)
    batch = stored(older, [exact])
    maps, basis = older.coded_maps(batch), torch.from_numpy(older.tables["score_basis"])
    steps = older.transform.step_sizes("score", maps, older.calibration.step("score"))
    planes = older.planes(batch, maps, "score")
    assert all(level.shape[1] == FEW for level in planes)
    for level, (q, found) in enumerate(zip(planes, older.decode(batch).scores, strict=True)):
        residual = torch.einsum("kr,brhw->bkhw", basis, channel_planes.dct(q * steps[0, level], inverse=True))
        m, mean = maps.floats[level][:, None], older.transform.mean("score", level, maps)
        u = mean + torch.where(m > 0, residual / m.sqrt(), 0.0)
        assert torch.allclose(found, u * u.abs(), atol=1e-5)
    assert older.compare(exact, batch)["scores"] <= 1 + 1e-3


@pytest.mark.parametrize("planes", [FEW - 1, FEW + 1, CLASSES, FEW + CLASSES + 1])
def test_other_numbers_of_planes_are_refused(codec: Frs, planes: int) -> None:
    expected = np.resize(codec.tables["score_expected"], (len(SIZES), planes, FREQUENCIES))
    with pytest.raises(ValueError, match="score_expected: expected shape"):
        type(codec).from_json(codec.settings, {**codec.tables, "score_expected": expected})


def test_only_missing_directions_have_such_planes() -> None:
    """Not the features, and not scores all of whose directions are kept."""
    codec = calibrated_codec("frs", classes=CLASSES)
    for what in ("feature", "score"):
        expected = codec.tables[f"{what}_expected"]
        assert expected.shape[1] == codec.tables[f"{what}_basis"].shape[-1]
        doubled = {**codec.tables, f"{what}_expected": np.concatenate([expected, expected], axis=1)}
        with pytest.raises(ValueError, match=f"{what}_expected: expected shape"):
            Frs.from_json(codec.settings, doubled)


def test_expected_sizes_are_raised_to_the_budget() -> None:
    """The widest head, on more levels than usual."""
    expected = np.zeros((6, 512 + BUDGET.score_channels, FREQUENCIES), np.int16)
    expected[:, :512] = 80
    expected[0, 0, 0] = 81
    assert order_bytes({"score_expected": expected})["score"] > BUDGET.sample_bytes
    limited = limit_sizes(expected, expected.shape[1])
    assert limited.dtype == np.int16
    features = limit_sizes(np.arange(96, dtype=np.int16).reshape(6, 1, 16), expected.shape[1])
    cost = order_bytes({"feature_expected": features, "score_expected": limited})
    assert cost["feature"] < cost["score"] <= BUDGET.sample_bytes
    assert (limited[:, :512] == expected[:, :512]).all() and limited.min() > expected.min()
    usual = expected[:5, : 512 + 10827]
    assert limit_sizes(usual, usual.shape[1]) is usual


def test_the_limits_of_a_shard_have_room_for_all_planes(codec: Frs) -> None:
    """Those that apply without a codec too, which stay within the budget of a view."""
    assert 4 * codec.symbols_of("score", tuple(SIZES)) <= most_bytes(tuple(SIZES), codec.all_channels)
    largest = ((64, 128),)  # of as many score channels as a view may have
    assert most_bytes(largest, (8, BUDGET.score_channels, 0)) == BUDGET.sample_bytes + 1
