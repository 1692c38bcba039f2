"""Forged shards, sidecars, manifests and plans against the reader: a PipelineError or sound values, nothing else.

Seals, extents and checksums of every forgery are right, so that it gets past them: what is tested is what lies behind.
Driven by atheris (coverage of pipeline.cache, storage and codecs) where it is installed (pip install '.[fuzz]'), by
plain random bytes where it is not or ATHERIS=0 is set. atheris itself keeps about half a kB an execution; the memory
of the reader is told by the plain run.

python -m tests.torture.fuzz_reader --count 1000000 --out docs/results/trust_fuzz.json
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

try:
    import atheris
except ImportError:
    atheris = None
if os.environ.get("ATHERIS") == "0":
    atheris = None
if atheris:
    with atheris.instrument_imports(include=["pipeline.cache", "pipeline.storage", "pipeline.codecs"]):
        import pipeline.cache.reader
        import pipeline.codecs.group  # noqa: F401
import numpy as np
import torch
from google_crc32c import value as crc32c

from pipeline.cache.cache import FORMAT, Cache
from pipeline.cache.canonical import canonical, digest
from pipeline.cache.layout import load_pass_plan
from pipeline.cache.reader import ShardReader
from pipeline.cache.schema import CODEC, MANIFEST, PASS_PLAN, PLAN, require_fields
from pipeline.cache.sidecar import EXTENTS, parse_sidecar
from pipeline.cache.version1 import parse_head
from pipeline.cli.command import message_of
from pipeline.codecs.group import load_codec
from pipeline.codecs.packing import stack
from pipeline.errors import PipelineError
from pipeline.storage.extents import Extent
from pipeline.text import one_line
from tests.torture.common import arguments, record

GOLDEN = {version: Path(__file__).parents[1] / "golden" / f"frs-{version}" for version in (1, 2)}
SLOW = 2.0  # CPU seconds of one execution that count as a hang


class Cursor:
    """Numbers and bytes taken from the fuzzer's input; zeros where it has ended."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        self.at += count
        return found + bytes(count - len(found))

    def below(self, limit: int) -> int:
        return int.from_bytes(self.take(4), "little") % max(1, limit)

    @property
    def left(self) -> bool:
        return self.at < len(self.data)


class Target:
    """The golden cache, and forgeries of its parts: most in memory, some as files of a cache on a RAM disk."""

    KINDS = (*["sample"] * 8, *["head"] * 2, *["sidecar"] * 4, *["json"] * 4, "files")

    def __init__(self, version: int) -> None:
        self.extent, golden = EXTENTS[version], GOLDEN[version]
        self.root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / "cache"
        shutil.copytree(golden, self.root)
        self.codec: Any = load_codec(golden, json.loads((golden / "codec.json").read_bytes()))
        self.path = self.root / "pass-0" / "shard-00000.tar"
        self.reader = ShardReader(self.path)
        self.shard, sidecar = self.path.read_bytes(), loaded(golden / "pass-0/shard-00000.json")
        codec = loaded(golden / "codec.json")
        plan = {
            "format": FORMAT,
            "version": version,
            "recipe_digest": "0" * 64,
            "teacher_sha256": "0" * 64,
            "recipe": {
                "teacher": {"name": None},
                "data": {"annotations_sha256": ""},
                "views": {"finite": 2},
                "codec": {"type": "frs"},
            },
            "layout": {"batch_size": 2, "shard_samples": 4, "seed": 1},
        }
        entry = {"bytes": 1, "sha256": "0" * 64}
        manifest = {
            "pass": 0,
            "plan": digest(plan),
            "files": {"plan.json": entry, "shard-00000.tar": entry},
            "samples": 4,
            "bytes": 1,
            "bytes_by_array": {"frs": 1},
            "raw_fp16_bytes": 1,
            "measured": {"features_error": 0.1},
            "quarantine": [[3, "broken"]],
            "environment": {"numpy": "2"},
        }
        pass_plan = {"pass": 0, "shards": [[[[64, 96], [[1, 0], [2, 1]]]]]}
        self.fields = {
            "plan.json": PLAN,
            "codec.json": CODEC,
            "pass-0/plan.json": PASS_PLAN,
            "pass-0/manifest.json": MANIFEST,
        }
        self.files = {**dict(zip(self.fields, (plan, codec, pass_plan, manifest))), "pass-0/shard-00000.json": sidecar}
        for name, value in self.files.items():
            self._write(name, value)
        load_pass_plan(Cache(self.root).root, 0)  # what is forged is valid without a forgery
        self.taken = dict.fromkeys((*self.KINDS, "refused", "accepted", "decoded"), 0)

    def __call__(self, data: bytes) -> None:
        cursor = Cursor(data)
        kind = self.KINDS[cursor.take(1)[0] % len(self.KINDS)]
        self.taken[kind] += 1
        try:
            getattr(self, f"_{kind}")(cursor)
            self.taken["accepted"] += 1
        except PipelineError as error:
            assert one_line(message_of(error)) == message_of(error)
            self.taken["refused"] += 1

    def _patched(self, cursor: Cursor, extent: Extent) -> bytearray:
        """An extent's bytes with up to eight runs changed; half of the time checksums inside are made right again."""
        raw, mend = bytearray(self.shard[extent.offset : extent.offset + extent.size]), cursor.take(1)[0] & 1
        for _ in range(8):
            if not cursor.left:
                break
            at = cursor.below(len(raw))
            run = cursor.take(1 + cursor.below(8))
            raw[at : at + len(run)] = run[: len(raw) - at]
        if mend:
            mend_members(raw)
        return raw

    def _sample(self, cursor: Cursor) -> None:
        index = cursor.below(len(self.reader))
        raw = bytes(self._patched(cursor, self.reader.sidecar.samples[index]))
        with patch.object(self.reader, "_bytes", lambda *_: raw):
            self._decode(self.reader, index)

    def _head(self, cursor: Cursor) -> None:
        parse_head(bytes(self._patched(cursor, self.reader.sidecar.head)), len(self.reader))

    def _sidecar(self, cursor: Cursor) -> None:
        parse_sidecar(forge(self.files["pass-0/shard-00000.json"], cursor), self.path.with_suffix(".json"))

    def _json(self, cursor: Cursor) -> None:
        name = list(self.fields)[cursor.below(len(self.fields))]
        require_fields(forge(self.files[name], cursor), self.fields[name], self.root / name)

    def _files(self, cursor: Cursor) -> None:
        """The same through files: shard and sidecar, or one of the small ones."""
        name = list(self.files)[cursor.below(len(self.files))]
        try:
            if name.endswith("shard-00000.json"):
                self._shard(cursor)
                return
            self._write(name, forge(self.files[name], cursor))
            cache = Cache(self.root)
            load_pass_plan(cache.root, 0)
            cache.content()
        finally:
            self._write(name, self.files[name])

    def _shard(self, cursor: Cursor) -> None:
        raw, sidecar = bytearray(self.shard), deepcopy(self.files["pass-0/shard-00000.json"])
        index = cursor.below(len(self.reader))
        for extent in (self.reader.sidecar.head, self.reader.sidecar.samples[index])[cursor.take(1)[0] & 1 :]:
            raw[extent.offset : extent.offset + extent.size] = self._patched(cursor, extent)
        for name in ("head", "tail"):
            at, size = sidecar[name]["offset"], sidecar[name]["size"]
            sidecar[name] = vars(self.extent.of(at, bytes(raw[at : at + size])))
        for n, (at, size, _, *identity) in enumerate(sidecar["samples"]):
            sidecar["samples"][n] = [*vars(self.extent.of(at, bytes(raw[at : at + size]), *identity)).values()]
        self.path.write_bytes(raw)
        self._write("pass-0/shard-00000.json", sidecar)
        reader = ShardReader(self.path)
        try:
            self._decode(reader, index)
        finally:
            reader.close()

    def _decode(self, reader: ShardReader, index: int) -> None:
        stored = reader.read(index, self.codec)
        if self.taken["accepted"] % 64:
            return
        _, levels = reader.record(index, reader.chunks(index))
        wanted = {name: stored[name] for name in ("features", "scores", "frs")}
        output = self.codec.decode(stack([wanted], [levels]))
        assert all(torch.isfinite(t).all() for t in (*output.features, *output.scores, *output.frs))
        self.taken["decoded"] += 1

    def _write(self, name: str, value: Any) -> None:
        try:
            raw = canonical({**value, "seal": digest(value)})
        except (ValueError, TypeError):  # NaN and the like: no canonical spelling, so no seal can be forged
            raw = json.dumps(value).encode()
        (self.root / name).write_bytes(raw)


class Both:
    """A target for each format version; the first byte chooses."""

    def __init__(self) -> None:
        self.targets = [Target(version) for version in GOLDEN]

    def __call__(self, data: bytes) -> None:
        self.targets[(data[0] if data else 0) % len(self.targets)](data[1:])

    @property
    def taken(self) -> dict[str, int]:
        return {name: sum(target.taken[name] for target in self.targets) for name in self.targets[0].taken}


def loaded(path: Path) -> Any:
    value = json.loads(path.read_bytes())
    value.pop("seal")
    return value


def mend_members(raw: bytearray) -> None:
    """Make tar's sums and the crc32c behind each chunk right, by the sizes that the (changed) headers say."""
    at = 0
    while at + 512 < len(raw):
        header = raw[at : at + 512]
        header[148:156] = b" " * 8
        raw[at + 148 : at + 156] = b"%06o\0 " % sum(header)
        try:
            size = int(bytes(raw[at + 124 : at + 135]), 8)
        except ValueError:
            return
        stop = at + 512 + size
        if not 4 <= size <= len(raw) - at - 512:
            return
        if not header[:100].rstrip(b"\0").endswith(b"zarr.json"):
            raw[stop - 4 : stop] = crc32c(bytes(raw[at + 512 : stop - 4])).to_bytes(4, "little")
        at = at + 512 + -(-size // 512) * 512


ODD = (
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    1e308,
    float("nan"),
    "",
    "../../x",
    "/etc/passwd",
    "a\0b",
    [],
    {},
    [[]],
    "shard-00000.tar",
    {"": ""},
    -(2**31),
    2**40,
)


def forge(value: Any, cursor: Cursor) -> Any:
    """A copy in which a few places hold odd values, are gone, doubled or swapped."""
    forged = deepcopy(value)
    for _ in range(1 + cursor.below(3)):
        at, steps = forged, cursor.below(6)
        for _ in range(steps):
            keys = list(at) if isinstance(at, dict) else range(len(at))
            key = list(keys)[cursor.below(len(keys))] if len(keys) else None
            if key is None or not isinstance(at[key], dict | list) or not at[key]:
                break
            at = at[key]
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            continue
        key, way = keys[cursor.below(len(keys))], cursor.below(4)
        if way == 0:
            at[key] = deepcopy(ODD[cursor.below(len(ODD))])
        elif way == 1:
            at[key] = int.from_bytes(cursor.take(1 + cursor.below(8)), "little", signed=True)
        elif way == 2:
            del at[key]
        elif isinstance(at, list):
            at.append(at[key])
        else:
            at[cursor.take(cursor.below(12)).decode("latin-1")] = at[key]
    return forged


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Watch:
    """Calls the target; keeps the slowest execution and the memory at a few moments."""

    def __init__(self, target: Both, count: int) -> None:
        self.target, self.count, self.done, self.slowest = target, count, 0, 0.0
        self.memory: list[int] = []

    def __call__(self, data: bytes) -> None:
        begun = time.process_time()
        self.target(data)
        self.slowest = max(self.slowest, time.process_time() - begun)
        self.done += 1
        if self.done % max(1, self.count // 20) == 0:
            self.memory.append(memory())
            print(f"{self.done} executions, {memory() / 1e6:.0f} MB, {self.target.taken}", flush=True)


def figures(watch: Watch, driver: str) -> dict[str, Any]:
    early, late = watch.memory[len(watch.memory) // 4], watch.memory[-1]
    return {
        "executions": watch.done,
        "driver": driver,
        "crashes": 0,
        "hangs": int(watch.slowest > SLOW),
        "slowest_cpu_seconds": round(watch.slowest, 3),
        "by_target": watch.target.taken,
        "resident_mb_after_a_quarter": round(early / 1e6, 1),
        "resident_mb_at_the_end": round(late / 1e6, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
    }


def main() -> None:
    args, begun = arguments(__doc__, 1_000_000), time.perf_counter()
    torch.set_num_threads(1)
    watch = Watch(Both(), args.count)
    if atheris is None:
        rng = random.Random(args.seed)
        for _ in range(args.count):
            watch(rng.randbytes(rng.randrange(4, 96)))
        record(args, begun, figures(watch, f"random bytes, seed {args.seed}"))
        return

    def once(data: bytes) -> None:
        watch(data)
        if watch.done == args.count:  # libFuzzer ends the process itself
            record(args, begun, figures(watch, f"atheris, seed {args.seed}"))
            for target in watch.target.targets:
                shutil.rmtree(target.root.parent)
            sys.stdout.flush()
            os._exit(0)

    atheris.Setup(
        [
            sys.argv[0],
            f"-seed={args.seed}",
            "-artifact_prefix=/tmp/",
            "-max_len=96",
            "-rss_limit_mb=2048",
            "-timeout=120",  # by the clock on the wall, which a busy machine stretches; hangs are judged by CPU time
        ],
        once,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
