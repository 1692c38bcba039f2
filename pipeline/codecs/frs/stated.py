"""Choose the steps, and measure the gradient errors that codec.json states, with the sample's probes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from pipeline.codecs.base import CalibrationSample, Measure
from pipeline.codecs.frs.settings import FrsOptions
from pipeline.codecs.frs.step_search import Located, find_step, locate_step, refine_step
from pipeline.codecs.frs.weighted import WeightedTransform
from pipeline.codecs.summary import FEWEST
from pipeline.losses.frs import SCORE
from pipeline.losses.registry import feature_losses, loss_named
from pipeline.records import TeacherOutput

ROUGH = [0.01, 0.1]  # first steps tried to locate the step, in units of the residual's rms norm
START = [0.003, 0.03, 0.3]  # first steps tried on all views where it cannot be located
LOCATING = 8  # views to locate the step; all views are then measured only at steps close to it
FRS = ("feature", "score")  # the losses of FRS itself, which are also stated for a student twice as near


class Stated(NamedTuple):
    """What codec.json states: errors by `Loss.name`, and the share of the variance that a probe leaves, by tensor."""

    probe_error: dict[str, float]
    probe_unexplained: dict[str, float]
    near_error: dict[str, float]
    near_unexplained: dict[str, float]


def losses_of(what: str, profile: str | None = None) -> tuple[str, ...]:
    """Return the names of the losses that compare 'feature' or 'score'. `profile`: only those that it serves."""
    losses = [loss for loss in (*feature_losses().values(), SCORE) if loss.compares == what]
    return tuple(loss.name for loss in losses if profile is None or profile in loss.profiles)


def is_near(loss: str) -> bool:
    """Return whether a loss is measured on the near probe: its students copy the features without adapters."""
    return loss_named(loss).compares == "feature" and not loss_named(loss).adapters


def choose_step(
    transform: WeightedTransform,
    what: str,
    options: FrsOptions,
    scale: float,
    sample: CalibrationSample,
    close: float | None = None,
) -> float:
    """Find the coarsest step at which the gradient error of every loss of the profile is within the quality.

    A few views locate the step, and all views correct it. Only where that fails, all views measure many steps. close: a
    step whose error is near the target, so that none has to be located.
    """
    groups = [
        ([loss for loss in losses_of(what, options.profile) if is_near(loss) == near], near) for near in (False, True)
    ]

    def measure_worst(tried: list[float], views: int | None = None) -> list[float]:
        """Return the largest error of any loss, for each step. views: measure on the first ones only."""
        worst = [0.0] * len(tried)
        for losses, near in groups:
            if losses:
                probes = islice(sample.probes("choosing", losses, near), views)
                found = probe_errors(transform, what, probes, tried)
                worst = [max(old, *row.values()) if row else old for old, row in zip(worst, found)]
        return worst

    few = partial(measure_worst, views=LOCATING)
    located = Located(close, 1.0) if close else locate_step(few, [x * scale for x in ROUGH], options.allowed_error)
    refined = located and refine_step(measure_worst, located, options.allowed_error)
    return refined or find_step(what, measure_worst, [x * scale for x in START], options.allowed_error)


def state_errors(
    transform: WeightedTransform, steps: dict[str, float], options: FrsOptions, sample: CalibrationSample
) -> Stated:
    """Measure the errors of every loss at the chosen steps, on views that chose nothing.

    The near probe measures on FEWEST views, unless the profile promises the error of a loss that it measures.
    """
    stated = Stated({}, {}, {}, {})
    for what, step in steps.items():
        usual = [loss for loss in losses_of(what) if not is_near(loss)]
        (found,) = probe_errors(transform, what, sample.probes("reported", usual), [step])
        promised = any(is_near(loss) for loss in losses_of(what, options.profile))
        probes = islice(sample.probes("reported", losses_of(what), True), None if promised else FEWEST)
        (near,) = probe_errors(transform, what, probes, [step])
        stated.probe_error.update(found | {loss: error for loss, error in near.items() if is_near(loss)})
        stated.near_error.update({loss: error for loss, error in near.items() if loss in FRS})
        stated.probe_unexplained[what] = sample.unexplained(what)
        stated.near_unexplained[what] = sample.unexplained(what, True)
    return stated


def probe_errors(
    transform: WeightedTransform,
    what: str,
    probes: Iterable[tuple[TeacherOutput, Measure]],
    tried: list[float],
) -> list[dict[str, float]]:
    """Measure the mean gradient error of every loss at each of several steps; 0 if no view has a gradient."""
    found: list[dict[str, list[float]]] = [{} for _ in tried]
    for output, measure in probes:
        maps = transform.code_maps(output)
        decode = transform.trial(output, maps, what)
        for errors, step in zip(found, tried):
            coded: dict[str, Any] = {"frs": maps.floats, f"{what}s": decode(step)}
            for loss, error in measure(replace(output, **coded)).items():
                errors.setdefault(loss, []).extend([] if math.isnan(error) else [error])
        del output, measure, maps, decode, coded  # frees this view's graph before the next view is computed
    return [{loss: sum(e) / max(1, len(e)) for loss, e in errors.items() if loss != "total"} for errors in found]
