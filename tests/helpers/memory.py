"""What a command costs, measured from outside of its process."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers.forks import in_child


class Cost(NamedTuple):
    """Exit code, MB that the process grew to at most, its CPU seconds, and what it printed as errors."""

    code: int
    grown: float
    seconds: float
    errors: str


def cost_of(work: Callable[..., Any], *given: Any, log: Path) -> Cost:
    """Run `work(*given)` in a forked process, with its output in `log`. The kernel reports its largest memory."""
    started, start = os.pipe()
    child = in_child(_redirected, started, log, work, *given)
    before = _resident(child)
    os.write(start, b"1")
    _, status, usage = os.wait4(child, 0)
    os.close(started)
    os.close(start)
    seconds = usage.ru_utime + usage.ru_stime
    return Cost(os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024 - before, seconds, log.read_text())


def cost_of_verb(*argv: Any, log: Path) -> Cost:
    """Run a verb of the command line in a forked process."""
    return cost_of(_verb, *argv, log=log)


def refused(cost: Cost, match: str, most: float = 256) -> None:
    """The command ended in one line and exit code 2, without growing by more than `most` MB or taking long."""
    lines = [line for line in cost.errors.splitlines() if line.startswith("error: ")]
    assert cost.code == 2 and len(lines) == 1 and re.search(match, lines[0]), cost
    assert "Traceback" not in cost.errors and cost.grown < most and cost.seconds < 30, cost


def _verb(*argv: Any) -> None:
    from pipeline.cli.command import guarded
    from pipeline.cli.main import main

    sys.argv = ["pipeline", *map(str, argv)]
    guarded(main)


def _redirected(started: int, log: Path, work: Callable[..., Any], *given: Any) -> None:
    """Run with standard output and error in a file, once `started` can be read."""
    os.read(started, 1)
    sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
    work(*given)


def _resident(process: int) -> float:
    """The memory of a process now, in MB. A fork begins with that of its parent, without most pages of libraries."""
    fields = Path(f"/proc/{process}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
