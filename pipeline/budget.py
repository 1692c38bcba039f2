"""The budget: the most memory and time that a file of somebody else may cost.

A file is small and declares much: shapes, lengths, numbers of passes. Every limit is therefore compared with what
would be decoded, before it is decoded. docs/trust.md lists the numbers. Code that reads a file compares with BUDGET,
and raises its own error with the text of `excess`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

LONG = re.compile(rb"\d{19}")  # whole numbers below it are below 2^63
MARKS = (b",", b":", b"[", b"{")  # at most one of these before each value and each key of a JSON text


@dataclass(frozen=True)
class Budget:
    """Limits. Those of views also apply when stage 1 writes, so that a cache can always be read.

    pixels: of a padded view. positions: of all its FPN levels, in whole blocks of 4x4. channels, score_channels: of its
    features, and of its class scores or boxes. sample_bytes: its decoded float32 tensors, or the tables that put its
    symbols in order. batch_bytes: the same of views that are decoded together. step_bytes: the decoded tensors of a
    teacher's batch, and of a training step. tokens: of one tensor of a view. kept_bytes: stored arrays of all views
    that a report compares. image_bytes: of the file of an image. head_bytes: of a shard's head. table_bytes,
    table_files: of codec/. json_bytes, json_values: of a JSON file, values and keys. plan_bytes, plan_values: the same
    of the plan.json of a pass. pickle_steps: operations of a checkpoint's pickle.
    """

    pixels: int = 1 << 24
    positions: int = 1 << 18
    channels: int = 1 << 12
    score_channels: int = 1 << 14
    sample_bytes: int = 512 << 20
    batch_bytes: int = 256 << 20
    step_bytes: int = 8 << 30
    tokens: int = 1 << 22
    kept_bytes: int = 1 << 30
    image_bytes: int = 256 << 20
    head_bytes: int = 64 << 20
    table_bytes: int = 256 << 20
    table_files: int = 1 << 10
    json_bytes: int = 32 << 20
    json_values: int = 1 << 20
    plan_bytes: int = 256 << 20
    plan_values: int = 1 << 23
    passes: int = 1000
    pickle_steps: int = 1 << 20


BUDGET = Budget()


def excess(what: str, found: int, most: int) -> str | None:
    """Return what is wrong where a number exceeds its limit; None where it does not."""
    return f"{what}: expected at most {most}, found {found}" if found > most else None


def json_excess(raw: bytes, most: int = BUDGET.json_values) -> str | None:
    """Return what is wrong with a JSON text of too many values, without parsing it. Marks inside strings count too."""
    return excess("JSON values", sum(map(raw.count, MARKS)), most)


def parse_json(raw: bytes, most: int = BUDGET.json_values) -> Any:
    """Parse a JSON text of at most `most` values. Raise ValueError, also for a whole number of more than 64 bits."""
    wrong = json_excess(raw, most)
    if wrong is not None:
        raise ValueError(wrong)
    return load_json(raw)


def load_json(raw: bytes) -> Any:
    """Parse a JSON text whose number of values was checked. Raise ValueError as `parse_json`."""
    return json.loads(raw, parse_int=_whole) if LONG.search(raw) else json.loads(raw)


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError(f"expected a whole number of 64 bits, found {len(digits)} digits")
    return int(digits)
