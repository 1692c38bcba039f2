"""Draw the charts of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from pipeline.cache.cache import Cache
from pipeline.tools.report.bits import Bits
from pipeline.tools.report.charts import FAINT, INK, SERIES, draw_lines, draw_stacked, render_chart
from pipeline.tools.report.rates import Point
from pipeline.tools.report.students import Student

CURVES = 6  # most students in one chart: the number of colours


def draw_charts(
    cache: Cache,
    found: dict[str, Any],
    bits: Bits,
    rates: Sequence[Point],
    curve: Sequence[Point],
    students: Sequence[Student],
) -> dict[str, Markup]:
    """Draw every chart that has data. Return them by name."""
    parts = {name: size / found["views"] / 1e3 for name, size in found["bytes_by_tensor"].items()}
    plots: list[tuple[str, str, Callable[[Axes], None]]] = [
        ("tensors", "kB a view by tensor", partial(draw_tensors, parts=parts)),
        ("levels", "kB a view by FPN level", partial(draw_levels, rows=bytes_to_kilobytes(bits.by_level))),
        ("sizes", "histogram of kB a view", partial(draw_sizes, cache=cache)),
    ]
    if bits.by_tenth:
        plots.append(("tenths", "kB a view by FRS", partial(draw_tenths, rows=bytes_to_kilobytes(bits.by_tenth))))
    if any(point.errors for point in rates):
        title = "gradient error against kB a view"
        plots.append(("rates", title, partial(draw_errors, rates=rates, curve=curve)))
    shown = students[:CURVES]
    for key in sorted({name for s in shown for name in s.curves if name.startswith("loss_") and "frs" in name}):
        rows = {s.name: s.curves[key] for s in shown if key in s.curves}
        plots.append((key, f"{key} by iteration", partial(draw_losses, rows=rows, name=key)))
    if students:
        plots.append(("accuracy", "mAP of the students", partial(draw_accuracy, students=students)))
    return {name: render_chart(number, label, draw) for number, (name, label, draw) in enumerate(plots)}


def bytes_to_kilobytes(rows: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """Convert rows of bytes to kB."""
    return {name: np.array(row) / 1e3 for name, row in rows.items()}


def draw_tensors(axes: Axes, parts: dict[str, float]) -> None:
    """Draw the kB a view of each tensor."""
    names = sorted(parts, key=lambda name: parts[name])
    bars = axes.barh(names, [parts[name] for name in names], color=SERIES[0])
    axes.bar_label(bars, [f"{parts[name]:.2f}" for name in names], padding=3, fontsize=8, color=INK)
    axes.set_xlabel("kB a view")
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)


def draw_levels(axes: Axes, rows: dict[str, np.ndarray]) -> None:
    """Draw the kB a view of each FPN level."""
    names = [str(level) for level in range(len(rows["frs"]))]
    draw_stacked(axes, {name: row.tolist() for name, row in rows.items()}, names, "kB a view")
    axes.set_xlabel("FPN level, finest first")


def draw_tenths(axes: Axes, rows: dict[str, np.ndarray]) -> None:
    """Draw the kB a view of each tenth of the blocks, sorted by richness."""
    draw_stacked(axes, {name: row.tolist() for name, row in rows.items()}, [str(n + 1) for n in range(10)], "kB a view")
    axes.set_xlabel("tenth of a level's blocks, richest last")


def draw_sizes(axes: Axes, cache: Cache) -> None:
    """Draw a histogram of the bytes of all views of the cache."""
    found = [
        np.array([extent.size for extent in cache.shard(number, refs[0].shard).sidecar.samples]) / 1e3
        for number in cache.passes()
        for refs in cache.references(number)
        if refs
    ]
    values = np.concatenate(found)
    axes.hist(values, bins=40, color=SERIES[0])
    for share, words in ((50, "median"), (99, "99%")):
        value = float(np.percentile(values, share))
        axes.axvline(value, color=INK, linewidth=1, linestyle=":")
        axes.annotate(f" {words} {value:.1f}", (value, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    axes.set(xlabel="kB of a view", ylabel="views")


def draw_errors(axes: Axes, rates: Sequence[Point], curve: Sequence[Point]) -> None:
    """Draw the gradient error against kB a view: this cache, others, and coarser steps of this one."""
    for loss, colour, marker in (("feature", SERIES[0], "o"), ("score", SERIES[1], "s")):
        known, coarser = (
            sorted((p.kilobytes, 100 * p.errors[loss]) for p in points if loss in p.errors) for points in (rates, curve)
        )
        if not known:  # no class scores
            continue
        if len(known) > 1:
            axes.plot(*zip(*known), color=colour)
        elif coarser:
            axes.plot(*zip(*coarser), color=colour, linestyle="--")
        x, y = [k for k, _ in known], [e for _, e in known]
        axes.scatter(x, y, color=colour, marker=marker, s=22, label=f"{loss} loss", zorder=3)
        current = rates[0]
        if loss in current.errors:
            axes.scatter(
                [current.kilobytes],
                [100 * current.errors[loss]],
                color="none",
                edgecolor=INK,
                marker=marker,
                s=110,
                zorder=4,
                label="this cache" if loss == "feature" else None,
            )
    axes.set(xscale="log", yscale="log", xlabel="kB a view", ylabel="error of the gradient")
    for axis, unit in ((axes.xaxis, ""), (axes.yaxis, "%")):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}" + unit)
    axes.legend()


def draw_losses(axes: Axes, rows: Mapping[str, tuple[Sequence[float], Sequence[float]]], name: str) -> None:
    """Draw a distillation loss of each student by iteration."""
    draw_lines(axes, rows, "iteration", name.removeprefix("loss_").replace("_", " ") + " loss, weighted")


def draw_accuracy(axes: Axes, students: Sequence[Student]) -> None:
    """Draw the mAP of each student."""
    names = [s.name for s in reversed(students)]
    values = [100 * s.summary["mAP"] for s in reversed(students)]
    colours = [SERIES[0] if s.teacher == "this cache" else FAINT for s in reversed(students)]
    bars = axes.barh(range(len(names)), values, color=colours)
    axes.set_yticks(range(len(names)), names)
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=3, fontsize=8, color=INK)
    axes.set_xlabel("mAP, %")
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
