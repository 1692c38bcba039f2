"""`precision` beside both of torch's interfaces: inside it decides, afterwards getters and setters are as before.

Settings are the process's own, so each scenario gets a process: a fork of one that has imported torch and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.precision import precision
from tests.helpers.precision import BEFORE, CPU, CUDA, GETTERS, read

# What a process may do once the teacher has run; whatever inherits must still follow.
LATER = [
    "torch.backends.fp32_precision = 'ieee'",
    "torch.backends.cudnn.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False",
]
INSIDE = [
    "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True",
    "torch.set_float32_matmul_precision('highest')",
    "torch.backends.fp32_precision = torch.backends.cuda.matmul.fp32_precision = 'ieee'",
]


def in_a_fork(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` returns in a copy of this process; {'error': traceback} where it raises."""
    output, into = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            found = work(*given)
        except Exception:
            found = {"error": traceback.format_exc()}
        with os.fdopen(into, "w") as text:
            json.dump(found, text)
        os._exit(0)
    os.close(into)
    with os.fdopen(output) as text:
        found = json.load(text)
    os.waitpid(pid, 0)
    return found


def scenario(before: str) -> dict[str, Any]:
    """Readings before, inside and after; then what later settings come to, with `precision` used and without."""
    exec(before)
    seen: dict[str, Any] = {"before": read(), "later without": [in_a_fork(later, code) for code in LATER]}
    with precision(False):
        outer = read([*CUDA, *CPU])
        with precision(True):
            seen["tf32"] = [read(CUDA), read(CPU)]
        seen["ieee"] = [outer, read([*CUDA, *CPU])]
    seen["after"] = read()
    try:
        with precision(True):
            raise InterruptedError
    except InterruptedError:
        seen["after an error"] = read()
    seen["later"] = [in_a_fork(later, code) for code in LATER]
    seen["set inside"] = [in_a_fork(set_inside, code, tf32) for code in INSIDE for tf32 in (False, True)]
    return seen


def later(code: str) -> dict[str, Any]:
    exec(code)
    return read()


def set_inside(code: str, tf32: bool) -> dict[str, Any]:
    with precision(tf32):
        exec(code)
    return read()


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "tests.test_precision"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(params=BEFORE)
def found(request: pytest.FixtureRequest, seen: dict[str, Any]) -> dict[str, Any]:
    """What one scenario saw."""
    assert "error" not in seen[request.param], seen[request.param]["error"]
    return seen[request.param]


def test_operators_follow_inside(found: dict[str, Any]) -> None:
    assert [set(readings.values()) for readings in found["tf32"]] == [{"tf32"}, {"ieee"}]
    assert [set(readings.values()) for readings in found["ieee"]] == [{"ieee"}, {"ieee"}]


def test_getters_say_the_same_afterwards(found: dict[str, Any]) -> None:
    assert found["after"] == found["before"]
    assert found["after an error"] == found["before"]


def test_setters_work_afterwards(found: dict[str, Any]) -> None:
    assert found["later"] == found["later without"]


def test_what_code_inside_sets_is_put_back(found: dict[str, Any]) -> None:
    readable = {getter: value for getter, value in found["before"].items() if value != "raises"}
    for after in found["set inside"]:
        assert {getter: after[getter] for getter in readable} == readable


def test_the_older_getters_raise_in_some_scenarios(seen: dict[str, Any]) -> None:
    """And read in others: so above there was something to lose."""
    for getter in GETTERS[-3:]:
        values = [found["before"][getter] for found in seen.values() if "before" in found]
        assert "raises" in values and len(set(values)) > 1


if __name__ == "__main__":
    assert torch.backends.fp32_precision == "none" and "mmdet" not in sys.modules
    print(json.dumps({name: in_a_fork(scenario, code) for name, code in BEFORE.items()}))
