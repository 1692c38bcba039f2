"""Describe a calibrated codec for people. Does not import torch."""

from __future__ import annotations

import math
from typing import Any

from pipeline.cache.inspect import count_views
from pipeline.codecs.frs.settings import QUALITIES
from pipeline.codecs.settings import KINDS

EXCESS = 1.25  # warn if a stated error is this many times the requested one
FEWEST = 8  # views to choose the steps, and to report the error; fewer make both uncertain
STEEPEST = -0.5  # power of the unexplained share: the gradient that a codec error disturbs grows with its root at most


def promise(settings: dict[str, Any]) -> str:
    """Return a line with a calibrated codec's quality, errors and planes. `settings`: those of its codec.json."""
    if "probe_error" not in settings:
        return f"{settings['type']}, exact" + ("" if settings.get("scores", True) else ", no class scores")
    error, s = settings["probe_error"], settings
    scored, planes = ", no class scores", f"{s['feature_rank']} of {s['channels']}"
    if s.get("scores", True):
        scored, planes = f", {error['score']:.1%} (scores)", f"{planes} and {s['score_rank']} of {s['score_channels']}"
    if s.get("box_error") is not None:
        scored += f", {s['box_error']:.1%} (boxes, on their logits)"
    return (
        f"{s['type']}, quality {s['quality']}: gradient error on the probe {error['feature']:.1%} (features){scored}; "
        f"{planes} planes"
    )


def describe_student(settings: dict[str, Any]) -> list[str]:
    """Return a line about the student that the errors are stated for, and one twice as near; none for old caches."""
    if not settings.get("near_error"):
        return []
    usual, near = settings["probe_unexplained"], settings["near_unexplained"]
    whose = " and ".join(f"{what}s'" for what in usual)
    explains, nearer = (_shares({what: 1 - share for what, share in shares.items()}, 0) for shares in (usual, near))
    return [
        f"student  these errors are for one that explains {explains} of the {whose} variance; "
        f"one that explains {nearer} has {_shares(settings['near_error'], 1)}"
    ]


def error_at(settings: dict[str, Any], what: str, unexplained: float) -> float | None:
    """Return the error to expect for a student that leaves a share of the variance of 'feature' or 'score' unexplained.

    The error is a power of the share, through the promised student. The student twice as near gives the power, which is
    limited to STEEPEST and 0. None for old caches.
    """
    if not settings.get("near_error"):
        return None
    error, near = settings["probe_error"][what], settings["near_error"][what]
    share, near_share = settings["probe_unexplained"][what], settings["near_unexplained"][what]
    if min(error, near, near_share, unexplained) <= 0 or share <= near_share:
        return None
    power = min(0.0, max(STEEPEST, math.log(near / error) / math.log(near_share / share)))
    return float(error * (unexplained / share) ** power)


def list_warnings(settings: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """Return what a calibration should not be trusted for. `measured`: that of codec.json."""
    if "probe_error" not in settings:
        return []
    requested = QUALITIES.get(settings["quality"], settings["quality"])
    if isinstance(requested, str):  # a name that this version does not know
        return []
    beyond = [
        f"the stated error of the {loss} loss is {error:.2%}, beyond the requested {requested:.2%}; increase "
        "cache.calibration_views"
        for loss, error in settings["probe_error"].items()
        if error > EXCESS * requested and (loss in KINDS or settings.get("profile") == "universal")
    ]
    views = count_views(measured)
    counts = [views.get(part, FEWEST) for part in ("choosing", "reported")]  # old caches have no counts
    if min(counts) < FEWEST:
        beyond.append(
            f"only {counts[0]} views chose the steps and {counts[1]} reported the error, expected at least {FEWEST} "
            f"each; calibrate on {4 * FEWEST} views or more"
        )
    rank, channels = settings.get("score_rank"), settings.get("score_channels")
    if rank is not None and rank < channels:
        beyond.append(
            f"an older version stored the scores in {rank} directions of {channels}; a class that no calibration view "
            "shows is lost; make the cache again"
        )
    return beyond


def _shares(values: dict[str, float], digits: int) -> str:
    return " and ".join(f"{value:.{digits}%}" for value in values.values())
