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
    "epoch_4": "292 steps",
    "epoch_8": "584 steps",
    "lab_tuned": "student, tuned",
    "yolox_nano_early": "early",
    "yolox_nano_half": "half",
    "yolox_nano_late": "late",
}
HEADS = (
    "teacher student views misses MP KB_a_view:_features,_scores,_map stated expected found found,_plain "
    "found_/_expected"
)
WITHIN = 1.5  # factor, both ways, within which a found error agrees with the expected one
# Rules for the error of a student: that of the promised student, by what column, and the power of the ratio of both
# shares that multiplies it.
RULES = {
    "the stated error, for all students": ("stated", 0.0),
    "**the stated error, with the inverse root of the share**": ("stated", -0.5),
    "the requested error, with the inverse root of the share": ("requested", -0.5),
}


def expect(row: Row) -> Row:
    """Return the row with the error to expect of such a student."""
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
    return {**row, "expected": expected, "found_over_expected": expected and row["found"] / expected}


def pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Return the rows of features and scores that were measured together."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row[part] for part in ("codec", "teacher", "student", "megapixels", "quality", "calibration_views"))
        found.setdefault(key, {})[row["loss"]] = row
    return [(both["feature"], both["score"]) for both in found.values()]


def line(features: Row, scores: Row) -> list[str]:
    """Return the cells of one student."""

    def percent(column: str, digits: int = 1) -> str:
        return f"{features[column]:.{digits}%}, {scores[column]:.{digits}%}"

    row = features
    teacher, student = str(row["teacher"]), str(row["student"])
    size = f"{row['kb_view']:.1f}: {row['kb_features']:.1f}, {row['kb_scores']:.1f}, {row['kb_map']:.1f}"
    return [
        NAMES.get(teacher, teacher),
        STUDENTS.get(student, student),
        str(row["calibration_views"]),
        percent("missed", 0),
        f"{row['megapixels']:.2f}",
        size,
        *(percent(column) for column in ("stated", "expected", "found", "found_plain")),
        f"{features['found_over_expected']:.2f}, {scores['found_over_expected']:.2f}",
    ]


def table(rows: list[Row], codec: str) -> str:
    """Return the rows of a codec as a Markdown table."""
    heads = [head.replace("_", " ") for head in HEADS.split()]
    chosen = [row for row in rows if row["codec"] == codec]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *(line(*pair) for pair in pairs(chosen)))]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def compare_rules(rows: list[Row]) -> str:
    """Return a Markdown table that compares the rules on all rows."""
    lines = [
        "| rule | within a factor of 1.5 | farthest | root mean square factor | mean found / expected |",
        "|---|---|---|---|---|",
    ]
    for name, (column, power) in RULES.items():
        logs = [
            math.log(row["found"] / row[column]) - power * math.log(row["missed"] / row["missed_probe"]) for row in rows
        ]
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
    for codec in sorted({row["codec"] for row in content["rows"]}, reverse=True):
        print(f"\n{codec}\n\n{table(content['rows'], codec)}")
    print(f"\n{compare_rules(content['rows'])}")


if __name__ == "__main__":
    main()
