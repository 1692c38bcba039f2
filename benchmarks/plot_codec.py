"""The rate-distortion picture of benchmarks/codec.py: python benchmarks/plot_codec.py docs/results/codec.json

Writes codec.png and codec.svg beside the JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PARTS = {"features": "FPN features", "scores": "class scores"}
INK, MUTED, OURS = "#1a1a2e", "#8a8f98", "#c1440e"


def panel(axes: Any, rows: list[dict[str, Any]], part: str) -> None:
    """KB of one tensor against the gradient error of its loss."""
    for row in rows:
        error, size = row[f"err_{part}"], row[f"kb_{part}"]
        if row["codec"].startswith("frs") or not error > 1e-6:
            continue
        axes.plot(size, 100 * error, "o", color=MUTED, ms=5)
        style = {"xytext": (5, 3), "textcoords": "offset points", "fontsize": 7, "color": MUTED}
        axes.annotate(row["codec"], (size, 100 * error), **style)
    curve = sorted((row[f"kb_{part}"], 100 * row[f"err_{part}"]) for row in rows if row["codec"].startswith("frs"))
    axes.plot(*zip(*curve), "o-", color=OURS, ms=6, lw=1.8)
    axes.annotate("frs", curve[0], xytext=(-4, 8), textcoords="offset points", ha="right", color=OURS, weight="bold")
    axes.set(xscale="log", yscale="log", xlabel="KB a view", title=PARTS[part])
    axes.grid(which="major", color="#e6e6ea", lw=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    args = parser.parse_args()
    rows = [row for row in json.loads(args.json.read_text())["rows"] if row["data"] == "scenes"]
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    plt.rcParams.update({"axes.edgecolor": MUTED, "text.color": INK, "axes.labelcolor": INK})
    figure, grid = plt.subplots(len(sizes), len(PARTS), figsize=(11, 4.2 * len(sizes)), squeeze=False)
    for line, size in zip(grid, sizes):
        for axes, part in zip(line, PARTS):
            panel(axes, [row for row in rows if row["size"] == size], part)
            axes.set_ylabel("gradient error, %")
            axes.set_title(f"{PARTS[part]}, {size} px", loc="left", fontsize=10)
            axes.set_title("")
    figure.suptitle("Bytes against the error of the student's gradient", x=0.01, ha="left", weight="bold")
    figure.tight_layout()
    for suffix in (".png", ".svg"):
        figure.savefig(args.json.with_suffix(suffix), dpi=130)


if __name__ == "__main__":
    main()
