"""Recompute the expected errors of codec_found.json, and print the tables of docs/results/probe.md.

python benchmarks/found.py docs/results/codec_found.json

"Expected" follows from the figures of a row by the rule of `error_at`, so a change of the rule needs no measurement.
The file is written again. The last table compares rules.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.codecs.summary import error_at

Row = dict[str, Any]
NAMES = {
    "yolox_nano_coco": "YOLOX-Nano",
    "retinanet_r18": "RetinaNet R18",
    "teacher_retinanet_r101_thin": "demo, RetinaNet",
    "fcos": "demo, FCOS",
    "gfl": "demo, GFL",
    "faster_rcnn": "demo, Faster R-CNN",
}
STUDENTS = {
    "epoch_2": "146 steps",
    "epoch_8": "584 steps",
    "yolox_nano_early": "early",
    "yolox_nano_half": "half",
    "yolox_nano_late": "late",
}
FRS = "teacher student probe misses MP KB_a_view stated expected found found,_plain found_/_expected"
FRS2 = "teacher student misses MP KB_a_view:_features,_scores,_map stated expected found found,_plain found_/_expected"
WITHIN = 1.5  # factor, both ways, within which a found error agrees with the expected one
# Rules for the error of a student over that of the promised one. x: its share over that of the promised student. near:
# the same of the near student. p: power through both stated students.
RULES: dict[str, Callable[[float, float, float], float]] = {
    "power through both stated students": lambda x, near, p: x**p,
    "the same, constant beyond the promised student": lambda x, near, p: min(x, 1.0) ** p,
    "the same, constant beyond both": lambda x, near, p: max(near, min(x, 1.0)) ** p,
    "half the power beyond the promised student": lambda x, near, p: x ** (p / 2 if x > 1 else p),
    "inverse root": lambda x, near, p: x**-0.5,
    "**power through both, -1/2 to 0**": lambda x, near, p: x ** min(0.0, max(-0.5, p)),
}


def expect(row: Row) -> Row:
    """Return the row with the error to expect of such a student. Old probes stated errors without filter sizes."""
    settings = {
        key: {row["loss"]: row[column]}
        for key, column in (
            ("probe_error", "stated"),
            ("near_error", "stated_near"),
            ("probe_unexplained", "missed_probe"),
            ("near_unexplained", "missed_near"),
        )
    }
    expected = error_at(settings, row["loss"], row["missed"])
    found = row["found_plain" if row.get("calibration") == "before" else "found"]
    return {**row, "expected": expected, "found_over_expected": expected and found / expected}


def pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Return the rows of features and scores that were measured together."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row.get(part) for part in ("codec", "teacher", "student", "calibration", "megapixels", "quality"))
        found.setdefault(key, {})[row["loss"]] = row
    return [(both["feature"], both["score"]) for both in found.values()]


def line(features: Row, scores: Row) -> list[str]:
    """Return the cells of one student."""

    def percent(column: str, digits: int = 1) -> str:
        return f"{features[column]:.{digits}%}, {scores[column]:.{digits}%}"

    row, student = features, features["student"].replace("student-", "")
    if row.get("codec") == "frs2":
        middle = []
        size = f"{row['kb_view']:.1f}: {row['kb_features']:.1f}, {row['kb_scores']:.1f}, {row['kb_map']:.1f}"
    else:
        middle, size = [row.get("calibration", "after")], f"{row['kb_view']:.1f}"
    return [
        NAMES.get(row["teacher"], row["teacher"]),
        STUDENTS.get(student, student),
        *middle,
        percent("missed", 0),
        f"{row['megapixels']:.2f}",
        size,
        *(percent(column) for column in ("stated", "expected", "found", "found_plain")),
        f"{features['found_over_expected']:.2f}, {scores['found_over_expected']:.2f}",
    ]


def table(rows: list[Row], codec: str) -> str:
    """Return the rows of a codec as a Markdown table."""
    heads = [head.replace("_", " ") for head in (FRS2 if codec == "frs2" else FRS).split()]
    chosen = [row for row in rows if (row.get("codec") == "frs2") == (codec == "frs2")]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *(line(*pair) for pair in pairs(chosen)))]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def compare_rules(rows: list[Row]) -> str:
    """Return a Markdown table that compares rules on the rows of today's probe."""
    chosen = [row for row in rows if row.get("calibration") != "before"]
    lines = [
        "| rule | within a factor of 1.5 | farthest | root mean square factor | mean found / expected |",
        "|---|---|---|---|---|",
    ]
    for name, rule in RULES.items():
        logs = []
        for row in chosen:
            near = row["missed_near"] / row["missed_probe"]
            power = math.log(row["stated_near"] / row["stated"]) / math.log(near)
            ratio = rule(row["missed"] / row["missed_probe"], near, power)
            logs.append(math.log(row["found"] / row["stated"] / ratio))
        within = sum(abs(x) <= math.log(WITHIN) for x in logs)
        farthest, middle = max(logs, key=abs), sum(logs) / len(logs)
        spread = math.sqrt(sum(x * x for x in logs) / len(logs))
        figures = " | ".join(f"{math.exp(x):.2f}" for x in (farthest, spread, middle))
        lines.append(f"| {name} | {within} of {len(logs)} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    path = parser.parse_args().json
    content = json.loads(path.read_text())
    content["rows"] = [expect(row) for row in content["rows"]]
    path.write_text(json.dumps(content, indent=1) + "\n")
    for codec in ("frs", "frs2"):
        print(f"\n{codec}\n\n{table(content['rows'], codec)}")
    print(f"\n{compare_rules(content['rows'])}")


if __name__ == "__main__":
    main()
