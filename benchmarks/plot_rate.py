"""Plot the results of benchmarks/rate_accuracy.py: mAP of students against KB per view of their cache.

python benchmarks/plot_rate.py docs/results/rate_accuracy.json --out docs/results/rate_accuracy
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

from matplotlib.ticker import FuncFormatter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plot_codec import INK, MUTED, OURS, plt

BANDS = {"live": "teacher in the loop", "alone": "no teacher"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="path without suffix; .png and .svg are written")
    args = parser.parse_args()
    found: dict[str, list[dict]] = {}
    for row in json.loads(args.json.read_text())["rows"]:
        found.setdefault(row["teacher"], []).append(row)
    plt.rcParams.update({"axes.edgecolor": MUTED, "text.color": INK, "axes.labelcolor": INK})
    figure, axes = plt.subplots(figsize=(8, 4.2))
    for name in BANDS.keys() & found.keys():
        values, words = [100 * row["mAP"] for row in found.pop(name)], BANDS[name]
        color = INK if name == "live" else MUTED
        axes.axhspan(min(values), max(values), color=color, alpha=0.12, lw=0)
        axes.axhline(mean(values), color=color, lw=1.2, ls="--")
        axes.text(0.995, mean(values), words, transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=9)
    curve = sorted(found.items(), key=lambda pair: pair[1][0]["kb_view"])
    points = [(rows[0]["kb_view"], mean(100 * row["mAP"] for row in rows)) for _, rows in curve]
    for _, rows in curve:
        axes.plot([row["kb_view"] for row in rows], [100 * row["mAP"] for row in rows], ".", color=OURS, alpha=0.6)
    axes.plot(*zip(*points), "o-", color=OURS, lw=1.8, ms=6)
    for (name, _), point in zip(curve, points):
        label = name if name == "lossless" else f"{100 * float(name):g}%"
        axes.annotate(label, point, xytext=(7, 5), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="KB per view of the cache on disk", ylabel="mAP of the student")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="#ececf0", lw=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    title = "Bytes and accuracy, three seeds for each requested gradient error"
    axes.set_title(title, loc="left", weight="bold", fontsize=11)
    figure.tight_layout()
    for suffix in (".png", ".svg"):
        figure.savefig(args.out.with_suffix(suffix), dpi=130)


if __name__ == "__main__":
    main()
