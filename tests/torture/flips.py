"""One bit flipped anywhere in a cache: `verify` and stage 2's reading must refuse it and name the file or the sample.

python -m tests.torture.flips --count 2000 --out docs/results/trust_flips.json
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from pipeline.cache.sidecar import load_sidecar
from pipeline.errors import PipelineError
from pipeline.integrity.verify import verify
from tests.helpers.stages import stage1
from tests.torture.common import arguments, read_as_stage2, record, small_config

UNREAD = ("gate.json", "codec-copy/")  # by stage 2; in version 1, `content` does not cover gate.json
Place = tuple[str, Path, int, int, str]  # kind, file, first byte, bytes, what an error must name


def places(root: Path) -> list[Place]:
    """Every run of bytes of a cache, by what it is."""
    found: list[Place] = []
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name not in (".lock", "summary.json")):
        if path.suffix != ".tar":
            first = path.relative_to(root).parts[0]
            kind = f"{first}/" if first in ("codec", "codec-copy") else path.name.split("-")[0]
            found.append((kind, path, 0, path.stat().st_size, first if first == "codec-copy" else path.name))
            continue
        sidecar = load_sidecar(path.with_suffix(".json"))
        raw = path.read_bytes()
        found.append(("head", path, 0, sidecar.head.size, path.name))
        found.append(("tail", path, sidecar.tail.offset, sidecar.tail.size, path.name))
        for n, extent in enumerate(sidecar.samples):
            at = extent.offset
            while at < extent.offset + extent.size:
                size = int(raw[at + 124 : at + 135], 8)
                found.append(("tar header", path, at, 512, f"sample {n} "))
                found.append(("chunk", path, at + 512, size, f"sample {n} "))
                if -size % 512:
                    found.append(("padding", path, at + 512 + size, -size % 512, f"sample {n} "))
                at += 512 + size + -size % 512
    return found


def refused(work, root: Path, named: str) -> bool:
    """Whether reading the cache ends in an error that names the place."""
    try:
        work(root)
    except PipelineError as error:
        return named in str(error)
    return False


def main() -> None:
    args, begun = arguments(__doc__, 2000), time.perf_counter()
    torch.set_num_threads(1)
    rng, tries, missed = random.Random(args.seed), Counter(), []
    caches = Counter[str]()
    seen_by = {"verify": Counter(), "stage 2": Counter()}
    with tempfile.TemporaryDirectory() as folder:
        kinds_made = [("frs", 1), ("lossless", 1), ("frs", 2), ("frs2", 2), ("lossless", 2)]
        configs = [small_config(Path(folder) / f"{codec}-{n}", codec, 6, n) for codec, n in kinds_made]
        for config in configs:
            stage1(config)
        roots = [config.parent / "cache" for config in configs]
        kinds: dict[str, list[Place]] = {}
        for root in roots:
            read_as_stage2(root), verify(root)
            for place in places(root):
                kinds.setdefault(place[0], []).append(place)
        for n in range(args.count):
            kind = list(kinds)[n % len(kinds)]
            _, path, start, size, named = rng.choice(kinds[kind])
            at, bit = start + rng.randrange(size), 1 << rng.randrange(8)
            with open(path, "r+b") as file:
                file.seek(at)
                was = file.read(1)[0]
                file.seek(at)
                file.write(bytes([was ^ bit]))
            root = next(r for r in roots if path.is_relative_to(r))
            tries[kind] += 1
            caches["{}, version {}".format(*kinds_made[roots.index(root)])] += 1
            whole_file = named if not named.startswith("sample") else path.name
            for reader, work, name in (("verify", verify, whole_file), ("stage 2", read_as_stage2, named)):
                if refused(work, root, name):
                    seen_by[reader][kind] += 1
                elif not (reader == "stage 2" and kind in UNREAD):
                    missed.append(f"{reader}: {path.relative_to(root)} byte {at} bit {bit}")
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(bytes([was]))
        for root in roots:
            read_as_stage2(root), verify(root)
    table = {kind: {"tries": tries[kind], **{r: c[kind] for r, c in seen_by.items()}} for kind in tries}
    record(args, begun, {"flips": args.count, "by_cache": dict(caches), "missed": missed, "detected_by_place": table})
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
