"""Compare decoding and the two losses of FRS with those of an earlier commit: CPU seconds and operations of a batch.

python benchmarks/batch_decode.py --before COMMIT                  # the demo's cache, made with frs2; or --codec frs
python benchmarks/batch_decode.py --before COMMIT --cache CACHE --json docs/results/batch_decode.json

Both commits read the same batch of a cache, and take turns in processes of one thread. The student's tensors are zero,
because they do not affect the time. Operations are those that compute: a view of a tensor is none.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, os.environ.get("MEASURED_TREE", str(ROOT)))  # the child measures the tree of another commit


def measure(folder: str, size: int, rounds: int) -> list[dict[str, Any]]:
    """Return the CPU seconds of decode and losses of every round, and their operations."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from pipeline.cache.cache import Cache
    from pipeline.codecs.group import open_codec
    from pipeline.codecs.packing import stack
    from pipeline.losses.registry import loss_named

    class Operations(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += not func.is_view
            return func(*args, **(kwargs or {}))

    torch.set_num_threads(1)
    cache = Cache(folder)
    codec, views = open_codec(cache), []
    read = getattr(codec, "read_sample", lambda arrays, levels: arrays)  # older commits have none
    for ref in [ref for refs in cache.references(0) for ref in refs][:size]:
        _, levels, arrays = cache.shard(0, ref.shard).view(ref.index)
        views.append((read(arrays, levels), levels))
    batch = stack([arrays for arrays, _ in views], [levels for _, levels in views])
    target = codec.decode(batch)
    own = [[torch.zeros_like(x).requires_grad_() for x in levels] for levels in (target.features, target.scores)]

    def losses() -> None:
        values = [loss_named(name)(target, x) for name, x in zip(("feature", "score"), own)]
        torch.autograd.grad(values, [x for levels in own for x in levels])

    rows = []
    for _ in range(rounds):
        row: dict[str, Any] = {"codec": codec.name, "views": len(views), "finest_level": list(target.levels[0])}
        for name, part in (("decode", lambda: codec.decode(batch)), ("losses", losses)):
            begun = time.process_time()
            part()
            row[f"{name}_cpu_s"] = time.process_time() - begun
            with Operations() as operations:
                part()
            row[f"{name}_operations"] = operations.count
        rows.append(row)
    return rows


def make_cache(args: argparse.Namespace, folder: str) -> str:
    """Run stage 1 into a folder. Return the cache."""
    from benchmarks import common

    options = [*args.options, f"cache.dir={folder}", f"cache.codec.type={args.codec}"]
    command = ["stage1_cache_teacher.py", "--config", args.config, "--cfg-options", *options]
    common.run(command, Path(folder).with_suffix(".log"))
    return folder


def main() -> None:
    from benchmarks import common
    from benchmarks.sample import add_codec

    parser = common.parser(__doc__)
    common.add_config(parser)
    add_codec(parser)
    parser.add_argument("--cache", help="cache to read; without it, stage 1 makes one of --config with --codec")
    parser.add_argument("--before", required=True, metavar="COMMIT")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="of each process")
    parser.add_argument("--turns", type=int, default=3, help="processes of each commit")
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as work:
        folder = f"{work}/before"
        subprocess.run(["git", "worktree", "add", "--detach", "--force", folder, args.before], cwd=ROOT, check=True)
        try:
            cache = args.cache or make_cache(args, f"{work}/cache")
            for _ in range(args.turns):
                for name, tree in (("before", folder), ("now", str(ROOT))):
                    command = [sys.executable, __file__, "--child", cache, str(args.batch_size), str(args.rounds)]
                    child = subprocess.run(
                        command, env={**os.environ, "MEASURED_TREE": tree}, capture_output=True, text=True, check=True
                    )
                    found[name] += json.loads(child.stdout.splitlines()[-1])
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=ROOT, check=True)
    rows = [{"commit": name, **{key: _middle(parts, key) for key in parts[0]}} for name, parts in found.items()]
    totals = [row["decode_cpu_s"] + row["losses_cpu_s"] for row in rows]
    rows.append({"commit": "now / before", "decode + losses": totals[1] / totals[0]})
    common.write(args.json, rows, before=args.before)
    print(common.table(rows, [*rows[0], "decode + losses"]))


def _middle(rows: list[dict[str, Any]], key: str) -> Any:
    return median(row[key] for row in rows) if isinstance(rows[0][key], int | float) else rows[0][key]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
