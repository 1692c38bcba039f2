"""SIGINT and SIGTERM: both stages end within seconds with one line, and committed data is kept."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.signals import INTERRUPTED, RERUN_TO_RESUME, RERUN_WITH_RESUME, Interrupted, interruptible
from pipeline.stage1.commit import BackgroundCommitter
from pipeline.storage.lock import locked
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector
from tests.helpers.forks import exit_code, in_child
from tests.helpers.launch import start_code, start_stage, wait_for
from tests.helpers.stages import stage1, stage2, tree


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_stage_1_stops(made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path, number: int) -> None:
    """Workers are running. Ctrl-C of a shell reaches all processes, SIGTERM of a scheduler only one."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    process = start_stage(1, config, "cache.workers=2")
    wait_for(process, tmp_path / "cache/pass-0/shard-00000.tar*")
    begun = time.perf_counter()
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and time.perf_counter() - begun < 30
    assert err.strip().splitlines()[-1] == RERUN_TO_RESUME and "Traceback" not in err
    assert not list(tmp_path.glob("cache/**/*.tmp"))
    stage1(config)
    assert tree(tmp_path / "cache") == tree(made["frs"].parent / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stage_2_stops(made: dict[str, Path], tmp_path: Path, number: int) -> None:
    options = (f"work_dir={tmp_path}", "train_dataloader.num_workers=2", "train_cfg.max_epochs=500")
    process = start_stage(2, made["frs"], *options)
    wait_for(process, tmp_path / "epoch_1.pth")
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.strip().splitlines()[-1] == RERUN_WITH_RESUME and "Traceback" not in err
    again = stage2(made["frs"], resume="auto", work_dir=str(tmp_path), **{"train_cfg.max_epochs": 1})
    assert again["epochs"] >= 1 and again["images"] == 0


def test_a_process_blocked_in_c_code_is_ended(tmp_path: Path) -> None:
    """Python's signal handlers wait for C code, so a rank in a barrier would never run them."""
    code = (
        "import ctypes\nfrom pipeline.cli import command, signals\nsignals.GRACE = 0.5\n"
        "def block():\n"
        "    print('ready', flush=True)\n"
        "    wait = ctypes.CDLL(None).pthread_mutex_lock\n"
        "    lock = ctypes.create_string_buffer(64)\n"
        "    wait(lock)\n    wait(lock)\n"  # C code that never returns and that no signal interrupts
        "command.guarded(block)\n"
    )
    process = start_code(code)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (143, INTERRUPTED)


DROPPED = """
import signal, time
from pipeline.cli import command, signals

signals.GRACE = 30  # this process must end by itself

class Loader:  # as torch's, which joins its workers
    ended = []

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.1)
        self.ended.append(True)

def main():
    Loader()
    assert Loader.ended, "the destructor was aborted"
    {then}

command.guarded(main)
"""


@pytest.mark.parametrize("then", ["time.sleep(60)", "raise RuntimeError('DataLoader worker is killed by signal')"])
def test_a_signal_inside_a_destructor_is_not_lost(then: str) -> None:
    """Python prints and drops an exception that a destructor raises. Calibration ends many loaders."""
    process = start_code(DROPPED.format(then=then))
    begun = time.perf_counter()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (143, INTERRUPTED) and time.perf_counter() - begun < 25


WORKER = """
import os, sys
from pipeline.cli.signals import interruptible

with interruptible():
    worker = os.fork()
    if worker == 0:
        try:
            raise {error}("it left")
        except {error}:
            sys.excepthook(*sys.exc_info())  # as multiprocessing's thread does that sends tensors
        os._exit(0)
    os.waitpid(worker, 0)
"""


@pytest.mark.parametrize(("error", "printed"), [("ConnectionResetError", 0), ("EOFError", 0), ("ValueError", 1)])
def test_a_worker_says_nothing_of_a_parent_that_ended(error: str, printed: int) -> None:
    _, err = start_code(WORKER.format(error=error)).communicate(timeout=60)
    assert err.count("Traceback") == printed


@pytest.mark.slow
@pytest.mark.parametrize("all_processes", [False, True])
def test_calibration_stops(data: Path, teacher: dict, tmp_path: Path, all_processes: bool) -> None:
    """With loader workers, at any moment, in one line. SIGTERM reaches the process alone, or its workers too."""
    for turn in range(4):
        config = make_config(data, teacher, detector("retinanet"), tmp_path / str(turn), "frs")
        process = start_stage(1, config, "cache.workers=2")
        wait_for(process, tmp_path / str(turn) / "cache/plan.json")
        time.sleep(0.3 * turn)
        os.killpg(process.pid, signal.SIGTERM) if all_processes else process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 143 and err.strip() == RERUN_TO_RESUME
        assert not (tmp_path / str(turn) / "cache/codec.json").exists() or turn


def interrupt_nested(inside: bool) -> None:
    """Send a signal inside or after the inner block. Exit with 0 if the message is that of the block."""
    try:
        with interruptible("outer"):
            with interruptible("inner"):
                if inside:
                    signal.raise_signal(signal.SIGTERM)
            watched = signal.set_wakeup_fd(-1)  # the outer thread must still see signals
            signal.set_wakeup_fd(watched)
            assert watched != -1
            signal.raise_signal(signal.SIGTERM)
    except Interrupted as interrupted:
        sys.exit((interrupted.code, interrupted.message) != (143, "inner" if inside else "outer"))


@pytest.mark.parametrize("inside", [True, False])
def test_a_nested_block_has_a_message_of_its_own(inside: bool) -> None:
    assert exit_code(in_child(interrupt_nested, inside)) == 0


COMMITTING = """
import time
from pathlib import Path
from pipeline.cli.command import guarded
from pipeline.storage.lock import locked
from pipeline.stage1.commit import BackgroundCommitter

def commit():
    time.sleep(2)
    Path({root!r}, "committed").touch()
    return None

def main():
    with locked(Path({root!r})), BackgroundCommitter(lambda *_: None) as committer:
        committer.submit(None, commit)
        print("ready", flush=True)
        {then}

guarded(main)
"""


@pytest.mark.parametrize("then", [pytest.param("time.sleep(60)", marks=pytest.mark.slow), "committer.finish()"])
def test_further_signals_do_not_release_the_lock_during_a_commit(tmp_path: Path, then: str) -> None:
    code = COMMITTING.format(root=str(tmp_path), then=then)
    process = start_code(code)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.2)
    with locked(tmp_path, wait=True):
        assert (tmp_path / "committed").exists() or process.wait(timeout=1)  # or the whole process was ended first
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, INTERRUPTED)


def test_ctrl_c_in_a_user_script_waits_for_the_commit() -> None:
    """In such a script Python's default handler raises KeyboardInterrupt at every Ctrl-C."""
    ended: list[bool] = []

    def commit() -> Any:
        time.sleep(1.2)
        ended.append(True)

    presses = [threading.Timer(delay, os.kill, [os.getpid(), signal.SIGINT]) for delay in (0.2, 0.4, 0.6)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist ignores it
    try:
        with pytest.raises(KeyboardInterrupt), BackgroundCommitter(lambda *_: None) as committer:
            committer.submit(None, commit)
            for press in presses:
                press.start()
            time.sleep(60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended
