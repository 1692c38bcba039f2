"""Describe a calibrated codec for people. Does not import torch."""

from __future__ import annotations

from typing import Any


def promise(settings: dict[str, Any]) -> str:
    """Return a line with a calibrated codec's quality, errors and planes. `settings`: those of its codec.json."""
    if "probe_error" not in settings:
        return f"{settings['type']}, exact" + ("" if settings.get("scores", True) else ", no class scores")
    error, s = settings["probe_error"], settings
    scored, planes = ", no class scores", f"{s['feature_rank']} of {s['channels']}"
    if s.get("scores", True):
        scored, planes = f", {error['score']:.1%} (scores)", f"{planes} and {s['score_rank']} of {s['score_channels']}"
    return (
        f"{s['type']}, quality {s['quality']}: gradient error on the probe {error['feature']:.1%} (features){scored}; "
        f"{planes} planes"
    )
