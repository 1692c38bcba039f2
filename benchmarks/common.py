"""Functions that the benchmarks share: flags, config, timing, commands, and output."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
DEMO = "configs/demo/retinanet_r101_r50.py"


class Usage(NamedTuple):
    """Resources of a command: wall and CPU seconds, and the peak resident GB of its largest process."""

    seconds: float
    cpu_seconds: float
    peak_gb: float


def parser(text: str | None, json_required: bool = False) -> argparse.ArgumentParser:
    """Make a parser that shows the script's docstring unchanged, with the flag --json."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, required=json_required, metavar="FILE", help="file for the rows")
    return made


def add_config(to: argparse.ArgumentParser) -> None:
    """Add --config and --options, which `load` reads."""
    to.add_argument("--config", default=DEMO)
    to.add_argument(
        "--options", nargs="*", default=[], metavar="KEY=VALUE", help="config values, for example cache.dir"
    )


def load(args: argparse.Namespace, more: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Load the config of --config and --options, with `more` values. Return it and its sections."""
    from pipeline.cli.command import parse_options
    from pipeline.config import load_config

    return load_config(args.config, {**parse_options(args.options), **(more or {})})


def seconds(part: Callable[[], Any], device: torch.device | None = None) -> float:
    """Time one call, including the device's work."""
    wait = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    part()
    wait()
    return time.perf_counter() - begun


def in_turns(
    parts: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Time every part once per round, so the machine's noise affects all equally. The first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, part in parts.items():
            times[name].append(seconds(part, device))
    return {name: found[1:] for name, found in times.items()}


def run(command: list[str], log: Path | None = None) -> Usage:
    """Run `python COMMAND` in the repository. Without a log, its standard output is discarded.

    Raise RuntimeError with the end of the log where the command fails.
    """
    begun = time.perf_counter()
    with open(log or os.devnull, "w") as file:
        errors = subprocess.STDOUT if log else None
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=file, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)}\n{log.read_text()[-2000:] if log else ''}")
    return Usage(time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9)


def quiet() -> None:
    """Silence warnings and logs. mmengine logs a line for every tensor that it initialises."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)


def machine() -> dict[str, Any]:
    """Describe the machine, without its host name."""
    return {
        "cpu": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "command": "python " + " ".join(sys.argv),
    }


def setting(cfg: Any) -> dict[str, Any]:
    """Return the settings that comparable benchmarks share: the scales of the views and the batch size."""
    transforms = cfg.train_dataloader.dataset.pipeline
    scales = [list(t.get("scale") or t["scales"]) for t in transforms if "scale" in t or "scales" in t]
    return {"scales": scales, "batch_size": cfg.train_dataloader.batch_size}


def write(path: Path | None, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write rows as JSON, with the machine and the command."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), **more, "rows": rows}, indent=1) + "\n")


def rows_so_far(path: Path | None) -> list[dict[str, Any]]:
    """Read the rows of an earlier run. They are not measured again."""
    return json.loads(path.read_text())["rows"] if path and path.exists() else []


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Format rows as a table for a terminal."""

    def show(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

    cells = [columns, *([show(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)
