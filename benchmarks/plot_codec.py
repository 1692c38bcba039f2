"""Plot the rate-distortion curves of benchmarks/codec_rivals.py.

python benchmarks/plot_codec.py docs/results/codec_320.json docs/results/codec_800.json --out docs/results/codec
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

PARTS = {"features": "FPN features", "scores": "class scores"}
MARKERS = "sDv^<>pPXh"
INK, MUTED, OURS = "#1a1a2e", "#8a8f98", "#c1440e"


def panel(axes: Any, rows: list[dict[str, Any]], part: str) -> None:
    """Plot the KB of one tensor against the gradient error of its loss."""
    rivals = [row for row in rows if not row["codec"].startswith(("frs", "lossless"))]
    for row, marker in zip(rivals, MARKERS):
        size, error = row[f"kb_{part}"], 100 * row[f"err_{part}"]
        axes.plot(size, error, marker, color=MUTED, ms=7, mfc="white", mew=1.4, label=row["codec"], clip_on=False)
    curve = sorted((row[f"kb_{part}"], 100 * row[f"err_{part}"]) for row in rows if row["codec"].startswith("frs"))
    axes.plot(*zip(*curve), "o-", color=OURS, ms=7, lw=2, label="frs: 10%, 3%, 1% requested")
    for requested in (1, 3, 10):
        axes.axhline(requested, color=OURS, lw=0.6, ls=":", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="KB per view", ylabel="gradient error, %")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(which="major", color="#ececf0", lw=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="path without suffix; .png and .svg are written")
    args = parser.parse_args()
    rows = [row for path in args.json for row in json.loads(path.read_text())["rows"] if row["data"] == "scenes"]
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    plt.rcParams.update({"axes.edgecolor": MUTED, "text.color": INK, "axes.labelcolor": INK})
    figure, grid = plt.subplots(len(sizes), len(PARTS), figsize=(12.5, 4 * len(sizes)), squeeze=False)
    for line, size in zip(grid, sizes):
        for axes, part in zip(line, PARTS):
            panel(axes, [row for row in rows if row["size"] == size], part)
            axes.set_title(f"{PARTS[part]}, {size} px", loc="left", fontsize=10)
    grid[0][-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8)
    figure.suptitle("Bytes and error of the student's gradient", x=0.01, ha="left", weight="bold")
    figure.tight_layout()
    for suffix in (".png", ".svg"):
        figure.savefig(args.out.with_suffix(suffix), dpi=130)


if __name__ == "__main__":
    main()
