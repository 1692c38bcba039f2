"""Treat a head of few channels as a wide one, of which only few directions are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.codecs.base import Codec
from pipeline.codecs.frs import sketch, statistics
from pipeline.codecs.frs2 import fit, kept


def keep_few_directions(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """From now on, calibrations keep `rank` directions of a head of more channels, as of one of thousands."""
    for module in (statistics, fit, kept):
        monkeypatch.setattr(module, "WIDE", rank)
    monkeypatch.setattr(sketch, "RANK", rank)
    monkeypatch.setattr(sketch, "SKETCH", rank + 2)


def without_channel_planes(codec: Codec) -> Codec:
    """Return the codec as older versions calibrated it: with the planes of the directions alone."""
    rank = codec.tables["score_basis"].shape[1]
    tables = {**codec.tables, "score_expected": codec.tables["score_expected"][:, :rank]}
    older = type(codec).from_json({**codec.settings, "score_rank": rank}, tables)
    return replace(older, stored=None)
