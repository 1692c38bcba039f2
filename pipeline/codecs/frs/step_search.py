"""Find the codec's step for the gradient error that `cache.codec.quality` allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from pipeline.errors import CodecError

CLOSE = 0.08  # relative distance from the target at which the search ends
ROUNDS = 5
FLAT = 1.1  # if the error grows by less than this factor while the step doubles, it does not depend on the step
FAR = 3.0  # factor between an error and the target beyond which a step is not located
APART = 1.15  # factor between a located step and each of the two that refine it
SMALL = 1.15  # largest factor between their errors and the target to extrapolate to a step without measuring it
REFINEMENTS = 3
FLATTEST = 0.1  # smallest slope of log(error) over log(step) to extrapolate with
TINY = 1e-12


class Located(NamedTuple):
    """About the step at which the error is just below a target, and d log(error) / d log(step) there."""

    step: float
    slope: float


def locate_step(errors: Callable[[list[float]], list[float]], start: Sequence[float], target: float) -> Located | None:
    """Estimate the step of a target error.

    errors: measures the error at several steps. It is called with the steps of `start`, and again with the estimate
    unless the target lies between the errors found, one of which is not far from it. Return None where all are far.
    """
    measured: dict[float, float] = {}
    tried = [_rounded(step) for step in start]
    for _ in range(2):
        measured |= {step: max(error, TINY) for step, error in zip(tried, errors(tried))}
        points = sorted(measured.items())
        near = any(target / FAR <= error <= target * FAR for _, error in points)
        step = _rounded(_interpolate(points, target))
        tried = [step]
        if near and points[0][1] <= target <= points[-1][1]:
            break
    if not near:
        return None
    below, above = sorted(points, key=lambda point: abs(math.log(point[0] / step)))[:2]
    slope = math.log(above[1] / below[1]) / math.log(above[0] / below[0])
    return Located(step, slope) if slope > FLATTEST else None


def refine_step(errors: Callable[[list[float]], list[float]], located: Located, target: float) -> float | None:
    """Return the step of a target error, from the errors of two steps around the located one. It is not measured.

    Return None where the target does not come close to the errors found.
    """
    step = located.step
    for _ in range(REFINEMENTS):
        tried = [_rounded(step / APART), _rounded(step * APART)]
        points = [(step, max(error, TINY)) for step, error in zip(tried, errors(tried))]
        (_, below), (_, above) = points
        if not below <= target <= above:  # two steps are too close to extrapolate from both
            points = [min(points, key=lambda point: abs(math.log(point[1] / target)))]
        step = _rounded(_interpolate(points, target, located.slope))
        if below / SMALL <= target <= above * SMALL:
            return step
    return None


def find_step(what: str, errors: Callable[[list[float]], list[float]], start: Sequence[float], target: float) -> float:
    """Find the coarsest step whose error is at most `target`, by log-log interpolation between the steps tried.

    `errors` measures several steps at once, because they share the forward pass of a view. Raise CodecError where no
    step reaches the target.
    """
    measured: dict[float, float] = {}
    tried = [_rounded(step) for step in start]
    for _ in range(ROUNDS):
        measured |= {step: max(error, TINY) for step, error in zip(tried, errors(tried))}
        points = sorted(measured.items())
        if _is_met(points, target):
            break
        tried = [_rounded(_interpolate(points, target))]
    return _choose_coarsest(what, points, target)


def _rounded(step: float) -> float:
    """Round a step, so that a repeated calibration finds the same."""
    return float(f"{step:.4g}")


def _is_met(points: list[tuple[float, float]], target: float) -> bool:
    """Return whether an error is just below the target, or all are below it and do not depend on the step."""
    close = any(target * (1 - CLOSE) <= error <= target for _, error in points)
    step, coarsest = max(points)
    finer = [error for other, error in points if other <= step / 2]
    return close or (coarsest <= target and bool(finer) and coarsest < FLAT * max(finer))


def _interpolate(points: list[tuple[float, float]], target: float, slope: float = 1.0) -> float:
    """Return the step at which the error should be just below the target. Outside the points, extrapolate.

    slope: that of the error where there is only one point.
    """
    aim = target * (1 - CLOSE / 2)
    below = points[0]
    if len(points) > 1:
        for below, above in pairwise(points):
            if below[1] <= aim < above[1]:
                break
        else:
            below, above = points[:2] if points[0][1] > aim else points[-2:]
        slope = math.log(above[1] / below[1]) / math.log(above[0] / below[0])
        if slope < FLATTEST:  # change the step by a fixed factor
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
