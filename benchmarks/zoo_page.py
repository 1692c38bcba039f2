"""Write docs/results/zoo.md from the JSON of benchmarks/zoo.py.

python benchmarks/zoo_page.py docs/results/zoo.json --out docs/results/zoo.md
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

DETECTOR, SETTINGS = ("teacher", "student"), ("data", "views", "replay", "schedule", "hooks", "metric")
BEFORE = {"student": "teacher", "features": "student"}  # the part that a line may come from; it is counted there
HEAD = """# mmdet's own zoo

Machine: {cores} shared x86-64 cores, no GPU; Python {python}, torch {torch} (CPU), one thread. Date: {date}.

    python benchmarks/zoo.py --json docs/results/zoo.json
    python benchmarks/zoo_page.py docs/results/zoo.json --out docs/results/zoo.md

Every config of mmdet's package outside `_base_` is the `_base_` of a config with the four sections, without another
change.

* *Teacher*: the detector, with random weights, gives finite outputs of the planned shapes for two views. *Student*: it
  trains one step on the outputs of another one with other weights as live teacher, with the config's optimizer; all
  losses are finite, and both distillation losses are above 0.
* *Features only*: tried where this does not work, as the error says, with
  `cache.codec=dict(scores=False, profile='universal')`, `distill.score_weight=0` and
  `distill.feature_loss='pkd'`. The detector is teacher and student: its features are encoded and decoded by the codec,
  and the student trains one step on them. The codec's step is chosen by the error of the features here, not by that of
  a gradient.
* *Data*, *views*, *schedule*, *hooks* and *metric* are the product's own checks, on four images with the config's
  classes. *Replay*: two objects make every view twice, equal to the bit, with the planned size.

{models} different detectors were built: those that differ only in depth above 50, widths, numbers of classes,
thresholds or pretrained weights ran once. Random weights say that a detector runs, not that it learns.
"""


def passes(row: dict[str, Any], part: str) -> bool:
    """Whether a config has no obstacle in this part. A part that was not reached is one, except a replay."""
    return row.get(part, "missing") is None if part != "replay" else row.get("replay") is None


def shape_of(line: str) -> str:
    """Return a refusal's line without the paths and values that differ between configs."""
    line = re.sub(r"/?[\w.@+-]*/[\w./@+-]+", "FILE", line)
    line = re.sub(r"[\[{(].*[\]})]", "(...)", line)
    return re.sub(r"\b\d+\b", "N", line).replace("|", "/")[:200]


def works(row: dict[str, Any]) -> bool:
    """Whether a detector works as teacher and as student, with class scores."""
    return all(passes(row, part) for part in DETECTOR)


def with_features(row: dict[str, Any]) -> bool:
    """Whether a detector works as teacher and as student with features only."""
    return not works(row) and passes(row, "features")


def is_free(row: dict[str, Any]) -> bool:
    """Whether nothing but the detector could stop a config."""
    return all(passes(row, part) for part in SETTINGS)


def family_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table with one row for each folder of the zoo."""
    columns = ["family", "configs", "detectors", *DETECTOR, "features only", *SETTINGS]
    columns += ["no obstacle", "no obstacle, features only"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    folders = sorted({row["name"].split("/")[0] for row in rows})
    for folder in [*folders, "all"]:
        members = [row for row in rows if folder in ("all", row["name"].split("/")[0])]
        detectors = [row for row in members if passes(row, "build")]
        if not detectors:
            continue
        counts = [sum(passes(row, part) for row in detectors) for part in DETECTOR]
        counts.append(sum(map(with_features, detectors)))
        counts += [sum(passes(row, part) for row in detectors) for part in SETTINGS]
        counts += [sum(is_free(row) and use(row) for row in detectors) for use in (works, with_features)]
        lines.append("| " + " | ".join(map(str, [folder, len(members), len(detectors), *counts])) + " |")
    return lines


def refusals(rows: list[dict[str, Any]], parts: tuple[str, ...]) -> list[str]:
    """Return a Markdown table of what stopped configs, most frequent first."""
    found: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        for part in parts:
            kind, line = row.get(part) or ("", "")
            if line and row.get(BEFORE.get(part, "")) != row[part]:
                found[part, kind, shape_of(line)] += 1
    lines = ["| configs | part | kind | line |", "|---|---|---|---|"]
    return lines + [f"| {count} | {part} | {kind} | {line} |" for (part, kind, line), count in found.most_common()]


def page(content: dict[str, Any]) -> str:
    """Return the whole page."""
    rows = content["rows"]
    detectors = [row for row in rows if passes(row, "build")]
    scored, featured = list(filter(works, detectors)), list(filter(with_features, detectors))
    every = ("load", "build", *DETECTOR, "features", *SETTINGS)
    faults = sum(any((row.get(part) or [None])[0] == "fault" for part in every) for row in rows)
    summary = (
        f"Of {len(rows)} configs, {len(detectors)} are detectors that load and build.\n"
        f"{len(scored)} of these work as teacher and as student with class scores, and {len(featured)} others with "
        f"features only: {len(scored) + len(featured)} in all.\n"
        f"{sum(map(is_free, scored))} configs pass every check without a change, and {sum(map(is_free, featured))} "
        f"others with features only.\n{faults} configs ended in a traceback."
    )
    unrun = sum("data" in row and not {"build", "limit"} & row.keys() for row in rows)
    if unrun:
        summary += f" The detectors of {unrun} other configs have not been run yet."
    parts = [
        HEAD.format(**content["machine"], models=content["models"]),
        summary,
        "\n## By family\n\nThe numbers are detectors without an obstacle in that part.\n",
        *family_table(rows),
        "\n## What stops detectors\n\n`refused`: one line and exit code 2. `fault`: a traceback. Lines of `teacher` "
        "and `student` are those with class scores.\n",
        *refusals(detectors, (*DETECTOR, "features", *SETTINGS)),
        "\n## Configs that are no detector here\n",
        *refusals([row for row in rows if not passes(row, "build")], ("load", "build", "limit")),
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/zoo.md"))
    args = parser.parse_args()
    args.out.write_text(page(json.loads(args.json.read_text())))


if __name__ == "__main__":
    main()
