"""kill -9 of stage 1 at random moments: nothing half-written is seen, the finished cache is the same to the byte.

Half of the kills come at any moment of the run, half right after a temporary file was seen. Each cache is killed until
a run gets to its end; then it is compared with one that was never disturbed.

python -m tests.torture.kill --count 200 --out docs/results/trust_kill.json
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from pipeline.integrity.verify import verify
from tests.helpers.forks import in_child
from tests.helpers.stages import stage1, tree
from tests.torture.common import arguments, record, small_config


def ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == child


def kill(child: int, root: Path, delay: float, at_a_write: bool) -> bool:
    """SIGKILL behind `delay` seconds, or at the next temporary file behind them. False: it had ended by itself."""
    until = time.perf_counter() + delay
    while time.perf_counter() < until or (at_a_write and not list(root.glob("**/*.tmp"))):
        if ended(child):
            return False
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def phase(root: Path) -> str:
    """How far the killed run had come."""
    if not (root / "codec.json").exists():
        return "gate and calibration"
    return "in a shard" if list(root.glob("pass-*/*.tar.*.tmp")) else "between files"


def undisturbed(folder: Path, codec: str) -> tuple[Path, dict[str, str], float]:
    """Config, the tree of its cache, and the seconds it took."""
    config, begun = small_config(folder, codec), time.perf_counter()
    os.waitpid(in_child(stage1, config), 0)
    return config, tree(config.parent / "cache"), time.perf_counter() - begun


def main() -> None:
    args, begun = arguments(__doc__, 200), time.perf_counter()
    torch.set_num_threads(1)
    rng, phases, kills, caches, wrong = random.Random(args.seed), Counter(), 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        cases = [undisturbed(Path(folder) / codec, codec) for codec in ("lossless", "frs")]
        while kills < args.count:
            config, wanted, lasts = cases[caches % 2]
            root = config.parent / f"cache-{caches}"
            again = partial(stage1, config, **{"cache.dir": str(root)})
            while kills < args.count:
                child = in_child(again)
                if not kill(child, root, rng.uniform(0, 0.9 * lasts), rng.random() < 0.5):
                    break
                kills += 1
                phases[phase(root)] += 1
                found = tree(root) if root.exists() else {}
                visible = {n: sha for n, sha in found.items() if not n.endswith(".tmp") and ".tmp/" not in n}
                wrong += [f"kill {kills}: {name}" for name, sha in visible.items() if wanted.get(name) != sha]
            os.waitpid(in_child(again), 0)
            if tree(root) != wanted:
                wrong.append(f"cache {caches} differs")
            verify(root)
            caches += 1
    figures = {"kills": kills, "caches": caches, "killed_while": dict(phases), "wrong": wrong}
    record(args, begun, {**figures, "seconds_of_an_undisturbed_run": [round(lasts, 2) for _, _, lasts in cases]})
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
