"""The entry scripts as processes of their own, alone or under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT


def launch(script: str, *arguments: str, ranks: int = 1, path: Path | None = None) -> subprocess.Popen:
    """Start an entry script; with `ranks` under torchrun. `path` is a folder that the process may import from."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun sets it: sums depend on it
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *torchrun, script, *arguments], cwd=ROOT, env=environment,
                            start_new_session=True, **pipes)  # fmt: skip


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
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "Signal 9" in out
