"""Files cut short at every 512-byte boundary and at random, or with bytes behind their end: always detected.

python -m tests.torture.cuts --count 1000 --out docs/results/trust_cuts.json
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from pipeline.errors import PipelineError
from pipeline.integrity.verify import verify
from tests.helpers.stages import stage1
from tests.torture.common import arguments, read_as_stage2, record, small_config


def refused(work, root: Path, name: str) -> bool:
    try:
        work(root)
    except PipelineError as error:
        return name in str(error)
    return False


def main() -> None:
    args, begun = arguments(__doc__, 1000), time.perf_counter()
    torch.set_num_threads(1)
    rng, tries, missed, caches = random.Random(args.seed), Counter(), [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        kinds = [("frs", 1), ("frs", 2), ("frs2", 2)]
        configs = [small_config(Path(folder) / f"{codec}-{n}", codec, 6, n) for codec, n in kinds]
        for config in configs:
            stage1(config)
        roots = [config.parent / "cache" for config in configs]
        found = [p for root in roots for p in root.rglob("*") if p.is_file()]
        files = sorted(p for p in found if p.name not in (".lock", "summary.json"))
        shards = [path for path in files if path.suffix == ".tar"]
        cuts = [("at a block", path, at) for path in shards for at in range(0, path.stat().st_size, 512)]
        for _ in range(args.count):
            path = rng.choice(files)
            cuts.append(("at random", path, rng.randrange(path.stat().st_size)))
        cuts += [("grown", path, path.stat().st_size + more) for path in files for more in (1, 512, 1024)]
        for kind, path, size in cuts:
            root = next(r for r in roots if path.is_relative_to(r))
            raw = path.read_bytes()
            path.write_bytes(raw[:size] + bytes(max(0, size - len(raw))))
            tries[kind] += 1
            caches["{}, version {}".format(*kinds[roots.index(root)])] += 1
            name = "codec-copy" if "codec-copy" in path.parts else path.name
            for reader, work in (("verify", verify), ("stage 2", read_as_stage2)):
                unread = reader == "stage 2" and name in ("gate.json", "codec-copy")
                if not refused(work, root, name) and not unread:
                    missed.append(f"{reader}: {path.relative_to(root)} cut at {size}")
            path.write_bytes(raw)
        for root in roots:
            verify(root)
    record(args, begun, {"tries": dict(tries), "by_cache": dict(caches), "missed": missed})
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
