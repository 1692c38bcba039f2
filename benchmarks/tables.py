"""Print the tables of docs/results as Markdown, from the JSON of codec_rivals.py, families.py and ablation.py.

python benchmarks/tables.py docs/results/codec_320.json docs/results/families.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEADINGS = {
    "kb_view": "KB a view",
    "kb_features": "features",
    "kb_scores": "scores",
    "kb_map": "map",
    "kb": "KB a view",
    "err_features": "error, features",
    "err_scores": "error, scores",
    "err_total": "error, total",
    "cosine_total": "cosine",
    "encode_ms": "encode ms",
    "decode_ms": "decode ms",
    "host_encode_ms": "zstd ms",
    "host_decode_ms": "crc + zstd ms",
    "missed": "missed by the student",
    "probe": "on the probe",
    "asked": "requested",
    "found": "measured",
    "found_over_asked": "measured / requested",
    "score_channels": "K",
}
COLUMNS = {
    "codec": [
        "codec",
        "kb_view",
        "kb_features",
        "kb_scores",
        "kb_map",
        "err_features",
        "err_scores",
        "err_total",
        "cosine_total",
        "encode_ms",
        "decode_ms",
        "host_encode_ms",
        "host_decode_ms",
    ],
    "student": [
        "student",
        "score_channels",
        "loss",
        "missed",
        "asked",
        "probe",
        "found",
        "found_over_asked",
        "kb_view",
    ],
    "part": ["part", "size", "variant", "kb", "err_features", "err_scores"],
}
SHARES = ("err_", "missed", "asked", "probe", "found")


def cell(name: str, value: Any) -> str:
    """Format one cell of a table."""
    if value is None or isinstance(value, str):
        return str(value or "").replace("_", " ")
    if name == "cosine_total":
        return f"{value:.4f}"
    if name.startswith(SHARES) and name != "found_over_asked":
        return "exact" if value == 0 else f"{100 * value:.2g}%" if value < 0.1 else f"{100 * value:.0f}%"
    return f"{value:.2g}" if value < 1 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows of one benchmark as a Markdown table."""
    columns = next(columns for key, columns in COLUMNS.items() if key in rows[0])
    lines = [[HEADINGS.get(column, column) for column in columns], ["---"] * len(columns)]
    lines += [[cell(column, row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    for path in parser.parse_args().json:
        rows = json.loads(path.read_text())["rows"]
        groups = dict.fromkeys((row.get("size"), row.get("data")) for row in rows) if "codec" in rows[0] else [None]
        for group in groups:
            title = " ".join(filter(None, group or ()))
            chosen = [row for row in rows if group is None or (row["size"], row["data"]) == group]
            print(f"\n{path.name} {title}\n\n{markdown(chosen)}")


if __name__ == "__main__":
    main()
