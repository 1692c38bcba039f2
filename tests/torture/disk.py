"""Disks that fill up, end files early, fail to write or to sync, or lie about it, at random moments of stage 1.

Each try: one error line naming a file and exit code 2, nothing committed that is not whole; and with the fault gone the
same command ends in the very cache of an undisturbed run. strace injects the faults (where it is installed and may
trace), a small tmpfs is the full disk (where this runs as root).

python -m tests.torture.disk --count 100 --out docs/results/trust_disk.json
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import stage1_cache_teacher
from pipeline.cli.command import guarded
from pipeline.integrity.verify import verify
from pipeline.storage import regular
from tests.helpers.forks import in_child
from tests.helpers.stages import stage1, tree
from tests.torture.common import arguments, record, small_config

INJECTED = {
    "write: EIO": "write:error=EIO",
    "write: ENOSPC": "write:error=ENOSPC",
    "fsync: EIO": "fsync:error=EIO",
    "rename: EIO": "rename,renameat,renameat2:error=EIO",
    "write: says 100, writes none": "write:retval=100",
}


class Try:
    """One faulty run of stage 1 on a cache of its own."""

    def __init__(self, config: Path, root: Path, err: Path) -> None:
        self.config, self.root, self.err, self._at = config, root, err, root

    def _stage1(self, limit: int | None, waits: int | None) -> None:
        if waits is not None:
            os.read(waits, 1)  # until strace is there
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv = ["stage1", "--config", str(self.config), "--cfg-options", f"cache.dir={self.root}"]
        os.dup2(os.open(self.err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        guarded(stage1_cache_teacher.main)

    def run(self, limit: int | None = None) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(in_child(self._stage1, limit, None), 0)[1])

    def traced(self, inject: str, path: Path | None) -> int:
        reads, writes = os.pipe()
        child = in_child(self._stage1, None, reads)
        call = inject.split(":", maxsplit=1)[0]
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={inject}"]
        tracer = subprocess.Popen([*strace, *(["-P", str(path)] if path else []), "-p", str(child)])
        while "TracerPid:\t0" in Path(f"/proc/{child}/status").read_text():
            time.sleep(0.01)
        os.write(writes, b"x")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        tracer.wait()
        os.close(reads)
        os.close(writes)
        return code


def main() -> None:
    args, begun = arguments(__doc__, 100), time.perf_counter()
    torch.set_num_threads(1)
    regular.secrets.token_hex = lambda size: "0" * 2 * size  # strace needs the names of temporary files
    rng, tries, unharmed, wrong, lines = random.Random(args.seed), Counter(), Counter(), [], set()
    kinds = ["file limit", *(["small tmpfs"] if os.geteuid() == 0 else [])]
    kinds += list(INJECTED) if shutil.which("strace") else []
    with tempfile.TemporaryDirectory() as folder:
        config = small_config(Path(folder), "lossless", images=6)  # no calibration: more writes a second
        os.waitpid(in_child(stage1, config), 0)
        whole = Path(folder) / "cache"
        wanted, total = tree(whole), sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
        names = [n for n in wanted if not n.startswith("codec/")]
        for n in range(args.count):
            kind, home = kinds[n % len(kinds)], Path(folder) / f"disk-{n}"
            home.mkdir()
            attempt = Try(config, home / "cache", Path(folder) / "err")
            tries[kind] += 1
            if kind != "small tmpfs":
                attempt.root.mkdir()
            mounted = False
            if kind == "file limit":
                shutil.copy(whole / "gate.json", attempt.root)  # mmdet's own temporary files would end early, too
                shutil.copy(whole / "plan.json", attempt.root)
                code = attempt.run(limit=rng.randrange(8000, 60000))  # what mmengine copies of a config is smaller
            elif kind == "small tmpfs":
                size = rng.randrange(60_000, total + 100_000)
                mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(home)]
                mounted = subprocess.run(mount, check=False).returncode == 0
                code = attempt.run()
            else:
                inject = INJECTED[kind]
                by_path = inject.startswith("write")
                path = home / "cache" / f"{rng.choice(names)}.{'0' * 16}.tmp" if by_path else None
                code = attempt.traced(f"{inject}:when={1 if by_path else rng.randrange(1, 20)}", path)
            wrong += judged(n, kind, code, attempt, wanted, unharmed, lines, folder)
            if mounted:
                subprocess.run(["mount", "-o", "remount,size=64m", str(home)], check=True)
            if attempt.run() != 0 or tree(attempt.root) != wanted:
                wrong.append(f"{n} {kind}: the cache that was finished afterwards differs")
            verify(attempt.root)
            if mounted:
                subprocess.run(["umount", str(home)], check=True)
            shutil.rmtree(home)
    figures: dict[str, Any] = {"tries": dict(tries), "fault_never_met": dict(unharmed), "wrong": wrong}
    record(args, begun, {**figures, "error_lines": sorted(lines)})
    raise SystemExit(bool(wrong))


def judged(
    n: int, kind: str, code: int, attempt: Try, wanted: dict[str, str], unharmed: Counter, lines: set[str], folder: str
) -> list[str]:
    """What is wrong with how a faulty run ended."""
    said, wrong = attempt.err.read_text(), []
    found = tree(attempt.root) if attempt.root.exists() else {}
    visible = {name: sha for name, sha in found.items() if not name.endswith(".tmp") and ".tmp/" not in name}
    wrong += [f"{n} {kind}: {name} is not whole" for name, sha in visible.items() if wanted.get(name) != sha]
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code == 0:
        unharmed[kind] += 1
        wrong += [] if found == wanted else [f"{n} {kind}: ended well with another cache"]
    elif code != 2 or len(errors) != 1 or "Traceback" in said or str(attempt.root) not in errors[0]:
        wrong.append(f"{n} {kind}: code {code}, {said[-300:]!r}")
    lines.update(line.replace(str(attempt.root), "CACHE").replace(folder, "") for line in errors)
    return wrong


if __name__ == "__main__":
    main()
