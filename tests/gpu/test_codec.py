"""The codecs on the device against the CPU: what one writes the other reads, to the bit where whole numbers decide."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.codecs.frs.codec import Frs
from tests.helpers.coded_batches import CHANNELS, close, encoded, equal, symbols, views
from tests.helpers.outputs import calibrated_codec, weighted_error
from tests.helpers.precision import read
from tests.helpers.related import RelatedSample, related_codec, short_training

pytestmark = pytest.mark.gpu

CASES: dict[str, dict[str, Any]] = {
    "frs-80": {"classes": 80},
    "frs-80-no-scores": {"classes": 80, "scores": False},
    "frs-720": {"classes": 720},
    "universal-80": {"classes": 80, "profile": "universal"},
    "universal-80-no-scores": {"classes": 80, "profile": "universal", "scores": False},
    "frs2-80": {"type": "frs2", "classes": 80},
    "frs2-universal-no-scores": {"type": "frs2", "classes": 80, "profile": "universal", "scores": False},
}


@pytest.fixture(scope="module", params=CASES)
def codec(request: pytest.FixtureRequest) -> Frs:
    settings = dict(CASES[request.param])
    if settings.get("type") == "frs2":  # on related levels, so that it has predictions
        sample = RelatedSample(CHANNELS, settings.pop("classes"), [(16, 24), (8, 12)])
        with short_training():
            found = related_codec(sample, **settings)
        assert "level_in" in found.tables and ("net_output" in found.tables) == settings.get("scores", True)
    else:
        found = calibrated_codec("frs", CHANNELS, **settings)
    assert isinstance(found, Frs)
    return found


def test_tokens_decode_the_same(codec: Frs, device: torch.device) -> None:
    batch = encoded(codec, views(codec))
    there = codec.decode(batch.to(device))
    assert all(t.device == device for t in (*there.features, *there.scores, *there.frs))
    here, there = codec.decode(batch), there.to("cpu")
    assert close(here.features, there.features) and here.grids == there.grids
    assert len(here.scores) == len(there.scores) == (2 if "score" in codec.kinds else 0)
    assert not here.scores or close(here.scores, there.scores)
    assert all(torch.equal(a, b) for a, b in zip(here.frs, there.frs, strict=True))
    ours, theirs = symbols(codec, batch), symbols(codec, batch.to(device))
    for what in codec.kinds:
        assert all(torch.equal(a, b) for a, b in zip(ours[what], theirs[what], strict=True))
        assert any(level.any() for level in ours[what])


def test_what_the_device_encodes_is_as_good(codec: Frs, device: torch.device) -> None:
    """Decoded on the CPU, it errs as what the CPU encodes. Only values half-way between two steps may round apart."""
    for exact in views(codec)[:3]:
        ours, theirs = encoded(codec, [exact]), encoded(codec, [exact], device)
        here, there = codec.decode(ours), codec.decode(theirs)
        losses = ["feature", *(["pkd"] if codec.settings["profile"] == "universal" else [])]
        for loss in [*losses, *(["score"] if "score" in codec.kinds else [])]:
            assert 0 < weighted_error(loss, there, exact) <= 1.01 * weighted_error(loss, here, exact) + 1e-6
        assert float((ours.arrays["frs"] == theirs.arrays["frs"]).float().mean()) > 0.99
        pairs = [pair for what in codec.kinds for pair in zip(symbols(codec, ours)[what], symbols(codec, theirs)[what])]
        assert all(float((a == b).float().mean()) > 0.99 for a, b in pairs)


@pytest.mark.parametrize("scores", [True, False])
def test_lossless_is_exact_across_devices(scores: bool, device: torch.device) -> None:
    codec = calibrated_codec("lossless", CHANNELS, 80, scores=scores)
    outputs = views(codec)
    whole = codec.decode(encoded(codec, outputs))
    assert equal(codec.decode(encoded(codec, outputs, device)), whole)
    assert equal(codec.decode(encoded(codec, outputs).to(device)).to("cpu"), whole)
    h, w = outputs[0].levels[0]
    assert torch.equal(whole.features[0][:2, :, :h, :w], outputs[0].features[0])


def test_decoding_repeats_itself(codec: Frs, device: torch.device) -> None:
    """Also under torch.use_deterministic_algorithms: no operation here is refused."""
    batch = encoded(codec, views(codec)).to(device)
    first = codec.decode(batch)
    assert equal(first, codec.decode(batch))
    with deterministic():
        assert equal(first, codec.decode(batch))


def test_encoding_repeats_itself(codec: Frs, device: torch.device) -> None:
    first = encoded(codec, views(codec), device)
    with deterministic():
        again = encoded(codec, views(codec), device)
    assert all(torch.equal(first.arrays[name], again.arrays[name]) for name in first.arrays)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_torch_is_left_as_it_was(codec: Frs, device: torch.device) -> None:
    before = state()
    batch = encoded(codec, views(codec), device).to(device)
    codec.decode(batch)
    assert state() == before


def state() -> dict[str, Any]:
    """What code could change for the rest of a process: generators, modes and settings."""
    generators = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    cudnn: Any = torch.backends.cudnn
    return {
        "torch": [generator.tolist() for generator in generators],
        "numpy": str(np.random.get_state()),
        "random": random.getstate(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": read(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }
