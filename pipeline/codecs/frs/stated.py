"""Choose the steps, and measure the gradient errors that codec.json states, with the sample's probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from pipeline.codecs.base import CalibrationSample, Measure
from pipeline.codecs.frs.settings import FrsOptions
from pipeline.codecs.frs.step_search import Located, find_step, locate_step, refine_step
from pipeline.codecs.frs.weighted import WeightedTransform
from pipeline.codecs.summary import STEEPEST
from pipeline.losses.frs import SCORE
from pipeline.losses.registry import feature_losses, loss_named
from pipeline.records import TeacherOutput

ROUGH = [0.01, 0.1]  # first steps tried to locate the step, in units of the residual's rms norm
START = [0.003, 0.03, 0.3]  # first steps tried on all views where it cannot be located
LOCATING = 6  # views to locate the step; all views are then measured only at steps close to it
OTHERS = 4  # views to measure the losses that a profile does not promise


class Stated(NamedTuple):
    """What codec.json states: errors by `Loss.name`, and the share of the variance that a student leaves, by tensor."""

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
    located: Located | None = None,
) -> float:
    """Find the coarsest step at which the gradient error of every loss of the profile is within the quality.

    A few views locate the step, and all views correct it. Only where that fails, all views measure many steps. located:
    a step that is known already to be close.
    """
    worst = worst_errors(transform, what, options, sample)
    located = located or locate(transform, what, options, scale, sample)
    refined = located and refine_step(worst, located, options.allowed_error)
    return refined or find_step(what, worst, [x * scale for x in START], options.allowed_error)


def locate(
    transform: WeightedTransform, what: str, options: FrsOptions, scale: float, sample: CalibrationSample
) -> Located | None:
    """Return about the step that `choose_step` would choose, from a few views; None where it is not found."""
    few = worst_errors(transform, what, options, sample, LOCATING)
    return locate_step(few, [x * scale for x in ROUGH], options.allowed_error)


def worst_errors(
    transform: WeightedTransform, what: str, options: FrsOptions, sample: CalibrationSample, views: int | None = None
) -> Callable[[list[float]], list[float]]:
    """Return a function from steps to the largest error of any loss of the profile, for each step.

    views: measure on the first ones only.
    """
    groups = _by_probe(losses_of(what, options.profile))

    def measure(tried: list[float]) -> list[float]:
        worst = [0.0] * len(tried)
        for near, group in enumerate(groups):
            if group:
                probes = islice(sample.probes("choosing", group, bool(near)), views)
                found = probe_errors(transform, what, probes, tried)
                worst = [max(old, *row.values()) if row else old for old, row in zip(worst, found)]
        return worst

    return measure


def state_errors(
    transform: WeightedTransform, steps: dict[str, float], options: FrsOptions, sample: CalibrationSample
) -> Stated:
    """Measure the errors of every loss at the chosen steps, on views that chose nothing.

    All views measure the losses that the profile promises. OTHERS measure the other losses, of which stage 2 needs to
    know only whether the cache is far too coarse for them. The error of a student twice as near follows from the
    inverse root of the unexplained share, as that of trained students does.
    """
    stated = Stated({}, {}, {}, {})
    for what, step in steps.items():
        promised = losses_of(what, options.profile)
        usual, near = _by_probe(promised)
        other_usual, other_near = _by_probe([loss for loss in losses_of(what) if loss not in promised])
        for losses, views in ((usual, None), (near, None), (other_usual, OTHERS), (other_near, OTHERS)):
            probes = islice(sample.probes("reported", losses, is_near(losses[0])), views) if losses else ()
            (found,) = probe_errors(transform, what, probes, [step])
            stated.probe_error.update(found)
        shares = [sample.unexplained(what, near) for near in (False, True)]
        stated.probe_unexplained[what], stated.near_unexplained[what] = shares
        stated.near_error[what] = stated.probe_error[what] * (shares[1] / shares[0]) ** STEEPEST
    return stated


def _by_probe(losses: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the losses that the usual probe measures, and those of the near one."""
    return [loss for loss in losses if not is_near(loss)], [loss for loss in losses if is_near(loss)]


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
