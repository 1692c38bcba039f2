"""Find the codec's step for the gradient error that `cache.codec.quality` allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from pipeline.errors import CodecError

CLOSE = 0.08  # relative distance from the target at which the search ends
ROUNDS = 5
FLAT = 1.1  # if the error grows by less than this factor while the step doubles, it does not depend on the step
TINY = 1e-12


def find_step(what: str, errors: Callable[[list[float]], list[float]], start: Sequence[float], target: float) -> float:
    """Find the coarsest step whose error is at most `target`, by log-log interpolation between the steps tried.

    `errors` measures several steps at once, because they share the forward pass of a view. Raise CodecError where no
    step reaches the target.
    """
    measured: dict[float, float] = {}
    tried = [float(f"{step:.2g}") for step in start]
    for _ in range(ROUNDS):
        measured |= {step: max(error, TINY) for step, error in zip(tried, errors(tried))}
        points = sorted(measured.items())
        if _is_met(points, target):
            break
        # Rounded, so that a repeated calibration finds the same step.
        tried = [float(f"{_interpolate(points, target):.4g}")]
    return _choose_coarsest(what, points, target)


def _is_met(points: list[tuple[float, float]], target: float) -> bool:
    """Return whether an error is just below the target, or all are below it and do not depend on the step."""
    close = any(target * (1 - CLOSE) <= error <= target for _, error in points)
    step, coarsest = max(points)
    finer = [error for other, error in points if other <= step / 2]
    return close or (coarsest <= target and bool(finer) and coarsest < FLAT * max(finer))


def _interpolate(points: list[tuple[float, float]], target: float) -> float:
    """Return the step at which the error should be just below the target. Outside the points, extrapolate."""
    aim = target * (1 - CLOSE / 2)
    for below, above in pairwise(points):
        if below[1] <= aim < above[1]:
            break
    else:
        below, above = points[:2] if points[0][1] > aim else points[-2:]
    slope = math.log(above[1] / below[1]) / math.log(above[0] / below[0])
    if slope < 0.1:  # too flat to extrapolate; change the step by a fixed factor
        return points[0][0] * 0.25 if below[1] > aim else points[-1][0] * 4.0
    return below[0] * math.exp(min(5.0, max(-5.0, math.log(aim / below[1]) / slope)))


def _choose_coarsest(what: str, points: list[tuple[float, float]], target: float) -> float:
    good = [step for step, error in points if error <= target]
    if not good:
        best = min(error for _, error in points)
        raise CodecError(
            f"cannot reach gradient error {target} of the {what}s (best {best:.4f}); increase cache.codec.quality, or "
            "use cache.codec.type='lossless'"
        )
    return max(good)
