"""What goes wrong around stage 1 and 2: full disks, signals, other writers, odd folders and images. Nothing is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch

from pipeline.cache.cache import Cache
from pipeline.cli.signals import GOES_ON, RESUMES, STOPPED
from pipeline.errors import CacheError, CodecError, StaleCache
from pipeline.integrity.verify import verify
from pipeline.records import TeacherOutput
from pipeline.stage1.commit import BackgroundCommitter
from pipeline.stage1.ranks import Ranks
from pipeline.storage import lock
from pipeline.storage.lock import locked
from pipeline.teacher.model import Teacher
from tests.conftest import detector, make_config, make_dataset, stage1
from tests.test_stages import ROOT, stage2, tree

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(stage: int, config: Path, *options: str, flags: Sequence[str] = (), **more: Any) -> subprocess.Popen:
    script, given = ("stage1_cache_teacher.py", "stage2_distill.py")[stage - 1], ["--cfg-options", *options]
    command = [sys.executable, script, "--config", str(config), *flags, *(given if options else [])]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes, **more)


def wait_for(process: subprocess.Popen, pattern: Path) -> None:
    while not list(pattern.parent.glob(pattern.name)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


# Stopping


LONG = pytest.mark.slow


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=LONG), signal.SIGTERM])
def test_stage_1_stops(made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path, number: int) -> None:
    """With workers running, as a shell (Ctrl-C reaches all) or a scheduler (SIGTERM reaches one) does it."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    process = start(1, config, "cache.workers=2")
    wait_for(process, tmp_path / "cache/pass-0/shard-00000.tar*")
    begun = time.perf_counter()
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and time.perf_counter() - begun < 30
    assert err.strip().splitlines()[-1] == GOES_ON and "Traceback" not in err
    assert not list(tmp_path.glob("cache/**/*.tmp"))
    stage1(config)
    assert tree(tmp_path / "cache") == tree(made["frs"].parent / "cache")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=LONG)])
def test_stage_2_stops(made: dict[str, Path], tmp_path: Path, number: int) -> None:
    options = (f"work_dir={tmp_path}", "train_dataloader.num_workers=2", "train_cfg.max_epochs=500")
    process = start(2, made["frs"], *options)
    wait_for(process, tmp_path / "epoch_1.pth")
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.strip().splitlines()[-1] == RESUMES and "Traceback" not in err
    again = stage2(made["frs"], resume="auto", work_dir=str(tmp_path), **{"train_cfg.max_epochs": 1})
    assert again["epochs"] >= 1 and again["images"] == 0


def test_a_process_that_cannot_listen_is_ended(tmp_path: Path) -> None:
    """Python's handlers wait for C code; a rank in a barrier would never hear them."""
    code = (
        "import ctypes\nfrom pipeline.cli import command, signals\nsignals.GRACE = 0.5\n"
        "def deaf():\n"
        "    print('ready', flush=True)\n"
        "    wait = ctypes.CDLL(None).pthread_mutex_lock\n"
        "    lock = ctypes.create_string_buffer(64)\n"
        "    wait(lock)\n    wait(lock)\n"  # C code that never returns and no signal interrupts
        "command.guarded(deaf)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (143, STOPPED)


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


@pytest.mark.parametrize("then", [pytest.param("time.sleep(60)", marks=LONG), "committer.finish()"])
def test_further_signals_do_not_free_the_lock_of_a_shard_that_is_being_written(tmp_path: Path, then: str) -> None:
    code = COMMITTING.format(root=str(tmp_path), then=then)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.2)
    with locked(tmp_path, wait=True):
        assert (tmp_path / "committed").exists() or process.wait(timeout=1)  # or all of it was ended at once
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, STOPPED)


def test_ctrl_c_in_a_script_of_ones_own_waits_for_the_shard_that_is_being_written() -> None:
    """There Python's own handler raises at each of them."""
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


def test_a_locked_cache_is_left_alone(made: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    (root / "pass-0/shard-00000.json").unlink()
    before = tree(root)
    with locked(root), pytest.raises(CacheError, match="another process is writing this cache"):
        stage1(made["frs"], **{"cache.dir": str(root)})
    assert tree(root) == before


def test_the_lock_is_held_until_the_last_rank_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one may go on with its shard for seconds when the leader is killed."""
    with locked(tmp_path):
        leaders = lock.share_locks()
        monkeypatch.setattr(lock, "_locks", others := {})  # as another process has them
        Ranks.share_lock(cast(Any, SimpleNamespace(world=2, broadcast=lambda _: ({}, leaders))))
        with pytest.raises(CacheError, match="another process is writing"), locked(tmp_path):
            pass
        lock._locks = {tmp_path: None}  # the leader's own, to leave by
    with pytest.raises(CacheError, match="another process is writing"), locked(tmp_path):
        pass
    others[tmp_path].close()
    with locked(tmp_path):
        pass


def test_a_forked_worker_does_not_hold_the_lock(tmp_path: Path) -> None:
    """Loaders' workers outlive a killed run for seconds; the next one must not be refused because of them."""
    with locked(tmp_path):
        fork = multiprocessing.get_context("fork")
        runs = fork.Event()
        worker = fork.Process(target=lambda: (runs.set(), time.sleep(60)))
        worker.start()
        runs.wait()
    try:
        with locked(tmp_path):
            pass
    finally:
        worker.kill()
        worker.join()


@LONG
def test_a_second_writer_is_refused(made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path) -> None:
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    first = start(1, config)
    wait_for(first, tmp_path / "cache/pass-0/plan.json")
    first.send_signal(signal.SIGSTOP)  # holds the lock for as long as it takes
    second = start(1, config)
    _, err = second.communicate(timeout=120)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and "another process is writing this cache" in err
    assert first.wait(timeout=120) == 0
    assert tree(tmp_path / "cache") == tree(made["frs"].parent / "cache")


# Disks


@pytest.mark.parametrize("size", [9000, pytest.param(25000, marks=LONG)])
def test_a_full_disk(made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path, size: int) -> None:
    """Files end at `size` bytes, as on a full disk: a short write, then an error."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    (tmp_path / "cache").mkdir()
    for name in ("gate.json", "plan.json"):  # mmdet's own temporary files are not what this is about
        shutil.copy(made["frs"].parent / "cache" / name, tmp_path / "cache")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    process = start(1, config, preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and "Traceback" not in err
    assert str(tmp_path / "cache") in line and "the same command goes on from there" in line
    whole = tree(made["frs"].parent / "cache")
    left = tree(tmp_path / "cache")
    assert all(whole.get(name) == sha for name, sha in left.items() if not name.startswith("codec.tmp/"))
    stage1(config)
    assert tree(tmp_path / "cache") == whole


@LONG
def test_a_checkpoint_that_does_not_fit(made: dict[str, Path], tmp_path: Path) -> None:
    """The disk is full when the second checkpoint comes: one line, and the first is still there."""
    options = (f"work_dir={tmp_path}", "train_cfg.max_epochs=2", "default_hooks.checkpoint.max_keep_ckpts=1")
    process = start(2, made["frs"], *options, "train_cfg.max_epochs=1")
    assert process.wait(timeout=120) == 0
    before = (tmp_path / "epoch_1.pth").read_bytes()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))  # noqa: E731
    process = start(2, made["frs"], *options, flags=["--resume"], preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "no checkpoint could be written" in err and "go on with --resume" in err
    assert before in [path.read_bytes() for path in tmp_path.glob("*.pth")]
    assert stage2(made["frs"], resume="auto", work_dir=str(tmp_path), **{"train_cfg.max_epochs": 2})["epochs"] == 2


@pytest.fixture
def read_only(made: dict[str, Path], tmp_path: Path) -> Path:
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("as root a read-only folder is none")
    return root


def without_override(*argv: str) -> subprocess.CompletedProcess:
    """Run Python; root, too, is bound by the modes of files."""
    drop = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, *argv]
    return subprocess.run(command, check=False, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def test_a_read_only_cache_serves(read_only: Path) -> None:
    look = "from pipeline.integrity.verify import collect_findings; from pipeline.progress import Silent\n"
    look += f"assert collect_findings({str(read_only)!r}, True, Silent())['whole']; open({str(read_only / 'x')!r}, 'w')"
    refused = without_override("-c", look)
    assert refused.stderr.strip().splitlines()[-1].startswith("PermissionError")


def test_the_log_of_a_cache_that_fills_its_mount(tmp_path: Path) -> None:
    """The folder above is not ours; the cache's own is."""
    (tmp_path / "mnt" / "cache").mkdir(parents=True)
    (tmp_path / "mnt").chmod(0o555)
    keep = f"import os; os.chdir({str(tmp_path)!r}); from pipeline.cli import terminal\n"
    keep += f"terminal.keep_log_beside({str(tmp_path / 'mnt/cache')!r}); terminal.log('kept')"
    done = without_override("-c", keep)
    told = (
        f"log      work_dirs/cache.log, as {tmp_path}/mnt/cache.log cannot be written; --log-file takes another place"
    )
    assert done.stdout.splitlines() == [told, "kept"], done.stderr
    assert [line[20:] for line in (tmp_path / "work_dirs/cache.log").read_text().splitlines()] == [told, "kept"]


@LONG
def test_a_student_of_a_read_only_cache(made: dict[str, Path], read_only: Path, tmp_path: Path) -> None:
    trained = without_override("stage2_distill.py", "--config", str(made["frs"]), "--work-dir", str(tmp_path / "run"),
                               "--cfg-options", f"cache.dir={read_only}")  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-2000:]


@pytest.mark.parametrize("name", ["spaces and кэш-キャッシュ", pytest.param("relative", marks=LONG)])
def test_any_path(
    made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = make_config(data, teacher, detector("retinanet"), tmp_path / "w", "frs")
    monkeypatch.chdir(tmp_path)
    where = f"./{name}/cache" if name == "relative" else str(tmp_path / name / "cache")
    stage1(config, **{"cache.dir": where})
    assert tree(Path(where)) == tree(made["frs"].parent / "cache") and verify(where)
    assert stage2(config, **{"cache.dir": where, "work_dir": str(tmp_path / name / "run")})["images"] == 12


# Recipes


def leaves(value: Any, at: tuple = ()) -> list[tuple]:
    if isinstance(value, dict):
        return [path for key, inner in value.items() for path in leaves(inner, (*at, key))]
    return [at]


def test_any_one_field_of_the_recipe(made: dict[str, Path]) -> None:
    cache = Cache(made["frs"].parent / "cache")
    paths = leaves(cache.recipe)
    assert len(paths) > 40
    for path in paths:
        other = json.loads(json.dumps(cache.recipe))
        at = other
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = "something else"
        with pytest.raises(StaleCache) as stale:
            cache.require(other)
        line = str(stale.value)
        assert f"{'.'.join(path)}: the cache has " in line and "wants 'something else'" in line, path
    with pytest.raises(StaleCache, match="teacher weights' sha256: the cache has"):
        cache.require(cache.recipe, "0" * 64)


# What the teacher says


@pytest.mark.parametrize(("value", "calibration"), [(float("nan"), True), (float("inf"), False)])
def test_a_teacher_that_says_nonsense(
    teacher: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, calibration: bool
) -> None:
    """On one image, one level: it is named, before or behind calibration, and nothing of it is committed."""
    data = make_dataset(tmp_path / "data", images=6)
    cv2.imwrite(str(data / "images" / "003.jpg"), np.full((72, 96, 3), 201, np.uint8))
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    say = Teacher.padded_together

    def nonsense(self: Teacher, views: Any) -> TeacherOutput:
        output = say(self, views)
        for b, view in enumerate(views):
            if view.float().std() < 1 and (calibration or (tmp_path / "cache/codec.json").exists()):
                output.features[2][b, 5, 0, 0] = value
        return output

    monkeypatch.setattr(Teacher, "padded_together", nonsense)
    with pytest.raises(CodecError, match=r"image 103 .*view \d.*level 2: the teacher's output holds NaN or infinity"):
        stage1(config, **{"cache.calibration_views": 12})
    assert not list((tmp_path / "cache").glob("**/*.tmp")) and not (tmp_path / "cache/pass-1").exists()


def test_fp16_that_overflowed_is_infinity() -> None:
    """A value that fp16 cannot hold is infinity by the time it is stored."""
    big = torch.full((2, 1, 2, 2), 7e4)
    big[0] = 1
    output = TeacherOutput([big.half().float()], [torch.zeros(2, 1, 2, 2)], [torch.zeros(2, 2, 2)])
    assert output.unsound() == (1, 0)
