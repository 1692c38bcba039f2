"""Render charts as SVG. Every colour is a CSS variable of the page, for its light, dark and print themes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cycler import cycler
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours that matplotlib draws with, replaced by CSS variables of the page. A chart has no other colours.
INK, FAINT = "#010203", "#040506"
SERIES = ("#070809", "#0a0b0c", "#0d0e0f", "#101112", "#131415", "#161718")
THEME = {INK: "var(--ink)", FAINT: "var(--faint)"} | {c: f"var(--s{n})" for n, c in enumerate(SERIES)}
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from foreign files
    "font.family": "sans-serif",
    "font.size": 10,
    "figure.figsize": (4.8, 2.9),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.prop_cycle": cycler(color=list(SERIES)),
    "lines.linewidth": 1.8,
}


def render_chart(number: int, label: str, draw: Callable[[Axes], None]) -> Markup:
    """Render one drawing as an SVG element; `number`: makes its ids unique; `label`: text for screen readers."""
    with rc_context({**STYLE, "svg.hashsalt": str(number)}):
        figure, text = Figure(), io.StringIO()
        draw(figure.subplots())
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(apply_theme(text.getvalue(), number, label))


def apply_theme(svg: str, number: int, label: str) -> str:
    """Remove the XML header and the fixed size, number the ids, and replace colours by CSS variables."""
    title = escape(label)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    opening = re.compile(r'^<svg[^>]*viewBox="([^"]*)"[^>]*>')
    svg = opening.sub(lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{title}">', svg)
    svg = re.sub(r'\bid="', f'id="chart{number}-', svg)
    svg = re.sub(r'(href="#|url\(#)', f"\\1chart{number}-", svg)
    for drawn, variable in THEME.items():
        svg = svg.replace(drawn, variable)
    return re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", svg)


def draw_stacked(axes: Axes, rows: dict[str, Sequence[float]], names: Sequence[str], unit: str) -> None:
    """Draw one stacked bar for each name, with one part for each row."""
    below = [0.0] * len(names)
    for part, values in rows.items():
        axes.bar(names, values, bottom=below, label=part, width=0.7)
        below = [b + v for b, v in zip(below, values)]
    axes.set_ylabel(unit)
    axes.grid(axis="x", visible=False)
    if len(rows) > 1:
        axes.legend()


def draw_lines(
    axes: Axes, rows: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str, **style: Any
) -> None:
    """Draw a line for each row of (x, y) values."""
    for name, (x, y) in rows.items():
        axes.plot(x, y, label=name, **style)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if rows:
        axes.legend()
