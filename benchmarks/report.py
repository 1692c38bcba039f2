"""What every benchmark writes: rows, and where, when and how they were measured."""

from __future__ import annotations

import datetime
import json
import logging
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import torch


def quiet() -> None:
    """Leave the terminal to the tables: mmengine has a line for every tensor that it initialises."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)


def machine() -> dict[str, Any]:
    """The machine in words, without its name."""
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
    """What two benchmarks must have in common to be compared: sizes of the views; and the batch size."""
    transforms = cfg.train_dataloader.dataset.pipeline
    scales = [list(t.get("scale") or t["scales"]) for t in transforms if "scale" in t or "scales" in t]
    return {"scales": scales, "batch_size": cfg.train_dataloader.batch_size}


def write(path: Path | None, rows: list[dict[str, Any]], **more: Any) -> None:
    """Rows as JSON, with the machine and the command beside them."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), **more, "rows": rows}, indent=1) + "\n")


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Rows for a terminal."""
    show = lambda v: f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v)  # noqa: E731
    cells = [columns, *([show(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)
