"""Write the page of benchmarks/gpu.py: each figure with the value required of it. Figures not measured are empty.

python benchmarks/gpu_page.py > docs/results/gpu.md           # the table without figures
python benchmarks/gpu_page.py --json docs/results/gpu.json > docs/results/gpu.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Measured = dict[str, Any]  # JSON of each part, by the part's name
HEAD = """# On a GPU

    make gpu                # sets up .venv, then measures for 8 minutes; results in work_dirs/gpu/results
    make gpu PY=python3     # the same with the packages installed for python3

`make gpu` runs `python benchmarks/gpu.py --out work_dirs/gpu/results --minutes 8`. For a machine without network, run
`make gpu-wheels` on another machine, copy the folder `wheels/`, and run `python3 -m pip install --no-index --no-deps
wheels/*.whl`.

The detectors are RetinaNet R101 and R50 at full width, and views are 800x1333. The teacher is the demo's, widened to
mmdet's R101 (`benchmarks/widen.py`). Its 256 channels are copies of 64, so a teacher trained at this width has more
tokens to decode. The data are the demo's scenes.
"""

DEVICE_COSTS = ("ms", "kernels", "synchronisations", "peak_mb")


@dataclass(frozen=True)
class Figure:
    """A line of the table: text, a function that finds the value, and a bound. `sense`: '<=', '>=', or '' for none."""

    text: str
    find: Callable[[Measured], float | int | None]
    sense: str = ""
    must: float = 0.0
    unit: str = ""

    def cells(self, measured: Measured) -> list[str]:
        """Return the cells of the line: text, bound, value, and whether the value is within the bound."""
        try:
            value = self.find(measured)
        except (KeyError, StopIteration, TypeError, ZeroDivisionError):
            value = None
        wanted = f"{self.sense} {shown(self.must)}{self.unit}" if self.sense else ""
        verdict = ""
        if value is not None and self.sense:
            verdict = "yes" if (value <= self.must if self.sense == "<=" else value >= self.must) else "NO"
        return [self.text, wanted, "" if value is None else f"{shown(value)}{self.unit}", verdict]


def shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def row(part: str, /, **wanted: Any) -> Callable[[Measured], Measured]:
    """Return a function that finds the row with these values in a part's JSON."""
    return lambda m: next(r for r in m[part]["rows"] if all(r[key] == value for key, value in wanted.items()))


def field(part: str, name: str, /, **wanted: Any) -> Callable[[Measured], Any]:
    """Return a function that finds one field of such a row."""
    return lambda m: row(part, **wanted)(m)[name]


def ratio(name: str, batches: str, batch_size: int, precision: str) -> Callable[[Measured], Any]:
    """Return a function that finds a ratio of benchmarks/step.py."""
    wanted = {"batches": batches, "batch_size": batch_size, "precision": precision}
    return lambda m: next(r for r in m["step"]["ratios"] if all(r[k] == v for k, v in wanted.items()))[name]


def decode_share(m: Measured) -> float:
    """Return the time of decoding a batch, relative to a training step without a teacher."""
    decode = row("codec", part="decode", score_channels=720)(m)
    step = row("step", variant="alone", batches="synthetic", batch_size=decode["batch_size"], precision="fp32")(m)
    return decode["ms"] / 1e3 / step["seconds_a_step"]


def mean_of(part: str, name: str) -> Callable[[Measured], float]:
    """Return a function that computes the mean of one field over a part's rows."""
    return lambda m: sum(r[name] for r in m[part]["rows"]) / len(m[part]["rows"])


def codec_figures(channels: int) -> list[Figure]:
    """Return the figures of benchmarks/codec_device.py."""
    figures = []
    for part in ("encode", "decode"):
        text = f"{part} a batch of 8, K = {channels}"
        found = {name: field("codec", name, part=part, score_channels=channels) for name in DEVICE_COSTS}
        figures += [
            Figure(f"{text}: time", found["ms"], unit=" ms"),
            Figure(f"{text}: kernels launched", found["kernels"]),
            Figure(f"{text}: synchronisations", found["synchronisations"], "<=" if part == "decode" else "", 0),
            Figure(f"{text}: memory in addition to its inputs", found["peak_mb"], unit=" MB"),
        ]
    for what in ("features", "scores", "frs"):
        find = field("codec", f"{what}_cpu_difference", part="decode", score_channels=channels)
        figures.append(Figure(f"decode on CUDA against the CPU, K = {channels}: {what}", find, "<=", 1e-5))
    return figures


def step_figures(batches: str, batch_size: int, precision: str) -> list[Figure]:
    """Return the figures of benchmarks/step.py for one setting."""
    where = f"step, {batches} batches of {batch_size}, {precision}"
    found = [
        Figure(f"{where}: cached / alone", ratio("cached_over_alone", batches, batch_size, precision), "<=", 1.10),
        Figure(f"{where}: live / cached", ratio("live_over_cached", batches, batch_size, precision), ">=", 1.35),
        Figure(
            f"{where}: memory, cached / alone",
            ratio("memory_cached_over_alone", batches, batch_size, precision),
            "<=",
            1.08,
        ),
    ]
    if batches == "loaded":
        wait = ratio("loader_wait_share", batches, batch_size, precision)
        found.append(Figure(f"{where}: waiting for data", wait, "<=", 0.02))
    return found


FIGURES = [
    Figure("tests -m gpu: run", lambda m: m["tests"]["tests"] - m["tests"]["skipped"]),
    Figure("tests -m gpu: failed", lambda m: m["tests"]["failures"] + m["tests"]["errors"], "<=", 0),
    *codec_figures(720),
    *codec_figures(80),
    Figure("decode as a share of a step without a teacher, K = 720, batch 8, fp32", decode_share, "<=", 0.05),
    *(
        figure
        for batches in ("loaded", "synthetic")
        for size in (8, 2)
        for precision in ("fp32", "tf32", "amp")
        for figure in step_figures(batches, size, precision)
    ),
    Figure("stage 1 / teacher alone, images per second", lambda m: m["stage1"]["stage1_over_bare"], ">=", 0.9),
    Figure("teacher alone", mean_of("stage1", "bare_per_second"), unit=" images/s"),
    Figure("stage 1", mean_of("stage1", "stage1_per_second"), unit=" images/s"),
    Figure("GPU busy, teacher alone", mean_of("stage1", "bare_gpu_busy")),
    Figure("GPU busy, stage 1", mean_of("stage1", "stage1_gpu_busy")),
    Figure("calibration on 256 views", lambda m: m["calibration"]["rows"][0]["seconds"], unit=" s"),
    Figure("stage 1 of COCO, two views per image", lambda m: m["ledger"]["rows"][0]["of_it_stage1_h"], unit=" h"),
    Figure(
        "24 epochs of a student from the cache, fp32",
        lambda m: m["ledger"]["rows"][0]["cached_h"] - m["ledger"]["rows"][0]["of_it_stage1_h"],
        unit=" h",
    ),
    Figure("24 epochs with the teacher in the loop, fp32", lambda m: m["ledger"]["rows"][0]["live_h"], unit=" h"),
    Figure("number of students from which the cache is faster", lambda m: m["ledger"]["ahead_from_student"], "<=", 1),
]


def page(found: dict[str, Any]) -> str:
    """Return the page as Markdown. `found`: gpu.json, or {} for a table without figures."""
    measured = {part["name"]: part["measured"] for part in found.get("parts", []) if "measured" in part}
    lines = [HEAD]
    if found:
        facts = {key: value for key, value in found["machine"].items() if value is not None}
        lines.append("Machine: " + ", ".join(f"{key} {value}" for key, value in facts.items()) + ".\n")
        if found["tiny"]:
            lines.append("**Toy sizes**: this run only checks that every part works. Its figures are meaningless.\n")
        lines += ["| part | status | seconds | limit |", "| --- | --- | --- | --- |"]
        lines += [f"| {p['name']} | {p['status']} | {p['seconds']:.0f} | {p['limit_s']:.0f} |" for p in found["parts"]]
        lines.append("")
    else:
        lines.append("**Not measured yet**: no part of this project has been run on a GPU.\n")
    lines += ["| figure | required | measured | reached |", "| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(figure.cells(measured)) + " |" for figure in FIGURES]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="gpu.json of a run")
    path = parser.parse_args().json
    sys.stdout.write(page(json.loads(path.read_text()) if path else {}))


if __name__ == "__main__":
    main()
