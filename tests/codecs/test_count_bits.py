"""Whether the score network pays is decided by bits that the entropy coder would really take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.codecs.frs2 import fit_residuals
from pipeline.codecs.frs2.count_bits import Quantised, count_bits, find_step
from pipeline.codecs.frs2.fit_residuals import learn_residuals
from pipeline.codecs.frs2.transform import PredictedTransform
from pipeline.codecs.frs2.windows import Window, Windows
from tests.helpers.related import related_codec, related_output

K, SIDE = 4, 8


@pytest.mark.parametrize("seed", [320, 321])
def test_bits_are_near_those_of_the_entropy_coder(seed: int) -> None:
    codec, output = related_codec(predict_scores=False), related_output(1, [(96, 128), (48, 64), (24, 32)], seed=seed)
    (sample,), _ = codec.encode(output)
    transform, maps = codec.transform, codec.transform.code_maps(output)
    coded = transform.code(output, maps, "feature", codec.calibration.feature_step)

    bits = [
        count_bits(Quantised.of(scaled, m[0], 1.0), expected)
        for scaled, m, expected in zip(coded.scaled, maps.floats, codec.tables["feature_expected"])
    ]

    assert sum(bits) / 8 == pytest.approx(len(sample["features"]), rel=0.1)


def test_a_block_without_coefficients_takes_no_bits() -> None:
    coded = Quantised.of(torch.zeros(1, K, SIDE, SIDE), torch.zeros(SIDE, SIDE), 1.0)

    assert count_bits(coded, np.zeros((K, 16), np.int16)) == 0


def test_a_step_loses_a_share_of_each_window() -> None:
    """With one window in 30 that has ten thousand times the energy, the step hardly changes."""
    energies = [np.geomspace(1e-4, 1, 64).reshape(K, 16) * (1 + n % 3) for n in range(29)]
    rows = [(energy / energy.sum(), 100 / energy.sum()) for energy in (*energies, 1e4 * energies[0])]
    usual = find_step(rows[:-1], 0.05)

    with_rare = find_step(rows, 0.05)

    shares = [np.minimum(energy, 100 * usual**2 / 12).sum() / energy.sum() for energy in energies]
    assert np.mean(shares) == pytest.approx(0.05, rel=1e-3)
    assert usual < with_rare < 1.1 * usual


@pytest.mark.parametrize(("usual", "rare", "pays"), [(1.2, 0.3, False), (0.7, 1.0, True), (1.0, 1.0, False)])
def test_rare_windows_do_not_decide(monkeypatch: pytest.MonkeyPatch, usual: float, rare: float, pays: bool) -> None:
    """usual, rare: what the network leaves of windows, of which every 20th has a thousand times the amplitude."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n in range(40):
        plain = torch.randn(1, K, SIDE, SIDE, generator=generator) * (1000 if n % 20 == 0 else 1)
        rows.append((plain, plain * (rare if n % 20 == 0 else usual)))
    share = torch.full((SIDE, SIDE), 1 / SIDE**2)
    window = Window(share, share, share, share, share, share, share)
    monkeypatch.setattr(fit_residuals, "_residuals", lambda *_: ((0, window, *row) for row in rows))
    transform = PredictedTransform(99, "frs", {"score_basis": np.eye(K, dtype=np.float32)})

    found = learn_residuals(transform, Windows(1), torch.device("cpu"), 0.03)

    assert (found is not None) == pays
