"""Finding the codec's step for the gradient error that `cache.codec.quality` allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from pipeline.errors import CodecError

CLOSE = 0.08  # relative distance from the target at which the search ends
ROUNDS = 5
FLAT = 1.1  # errors that grow by less than this while the step doubles do not follow it
TINY = 1e-12


def find_step(what: str, errors: Callable[[list[float]], list[float]], start: Sequence[float], target: float) -> float:
    """Find the coarsest step whose error meets `target`, by log-log interpolation between the steps tried so far.

    `errors` measures several candidates at once: a view's forward pass serves them all. Raises CodecError where the
    target is below what any step can reach.
    """
    seen: dict[float, float] = {}
    tried = [float(f"{step:.2g}") for step in start]
    for _ in range(ROUNDS):
        seen |= {step: max(error, TINY) for step, error in zip(tried, errors(tried))}
        points = sorted(seen.items())
        if _met(points, target):
            break
        # Few digits: a calibration that is repeated on another day must come to the same step.
        tried = [float(f"{_interpolated(points, target):.4g}")]
    return _coarsest(what, points, target)


def _met(points: list[tuple[float, float]], target: float) -> bool:
    """Whether one point lies close below the target, or all do and coarser steps change nothing."""
    close = any(target * (1 - CLOSE) <= error <= target for _, error in points)
    step, coarsest = max(points)
    finer = [error for other, error in points if other <= step / 2]
    return close or (coarsest <= target and bool(finer) and coarsest < FLAT * max(finer))


def _interpolated(points: list[tuple[float, float]], target: float) -> float:
    """Step at which the error would be just below the target; beyond the points, the last slope goes on."""
    aim = target * (1 - CLOSE / 2)
    for below, above in pairwise(points):
        if below[1] <= aim < above[1]:
            break
    else:
        below, above = points[:2] if points[0][1] > aim else points[-2:]
    slope = math.log(above[1] / below[1]) / math.log(above[0] / below[0])
    if slope < 0.1:  # flat: no step will change the error; go a fixed way
        return points[0][0] * 0.25 if below[1] > aim else points[-1][0] * 4.0
    return below[0] * math.exp(min(5.0, max(-5.0, math.log(aim / below[1]) / slope)))


def _coarsest(what: str, points: list[tuple[float, float]], target: float) -> float:
    good = [step for step, error in points if error <= target]
    if not good:
        best = min(error for _, error in points)
        raise CodecError(
            f"cannot reach gradient error {target} of the {what}s (best {best:.4f}); increase cache.codec.quality, or "
            "use cache.codec.type='lossless'"
        )
    return max(good)
