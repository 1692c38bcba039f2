"""The entry scripts as processes of their own, alone or under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT

SCRIPTS = {1: "stage1_cache_teacher.py", 2: "stage2_distill.py"}


def environment(path: Path | None = None) -> dict[str, str]:
    """Variables of a new process: this one's, as they are now, and the repository (and `path`) to import from.

    One thread, as torchrun sets it: the last digits of a convolution's sums depend on it.
    """
    folders = os.pathsep.join(str(folder) for folder in (path, ROOT) if folder)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folders}


def launch(script: str, *arguments: str, ranks: int = 1, path: Path | None = None) -> subprocess.Popen:
    """Start an entry script; with `ranks` under torchrun. `path` is a folder that the process may import from."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return subprocess.Popen(
        [sys.executable, *torchrun, script, *arguments],
        cwd=ROOT,
        env=environment(path),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_stage(stage: int, config: Path, *options: str, flags: Sequence[str] = (), **more: Any) -> subprocess.Popen:
    """Start stage 1 or 2, stdout and stderr apart. `options` follow --cfg-options; `more` is for Popen."""
    given = ["--cfg-options", *options] if options else []
    return subprocess.Popen(
        [sys.executable, SCRIPTS[stage], "--config", str(config), *flags, *given],
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def start_code(code: str) -> subprocess.Popen:
    """Start Python on `code`, with stdout and stderr apart."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment(), **pipes)


def wait_for(process: subprocess.Popen, pattern: Path) -> None:
    """Wait until a file of that pattern exists; the process must still run."""
    while not list(pattern.parent.glob(pattern.name)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def finished(process: subprocess.Popen) -> str:
    """Wait for a process that must succeed. Returns what it has printed."""
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out[-3000:]
    return out


def kill_a_rank(process: subprocess.Popen, when: Callable[[], bool]) -> None:
    """SIGKILL one of torchrun's ranks; all must end within a minute, and say why."""
    while not when():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(ranks_of(process)[-1], signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "Signal 9" in out


def ranks_of(process: subprocess.Popen) -> list[int]:
    """Return the process ids of torchrun's ranks."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]
