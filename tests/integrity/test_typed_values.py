"""A value of another type or size, under right digests, ends in one line or in a result: in every file and command."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.cache import Cache
from pipeline.cache.inspect import describe
from pipeline.cache.layout import load_pass_plan, read_recorded_passes
from pipeline.cache.manifest import check_pass, write_manifest
from pipeline.cache.quarantine import Quarantine
from pipeline.cli.command import message_of
from pipeline.cli.tables import info_table
from pipeline.codecs.group import open_codec
from pipeline.errors import PipelineError
from pipeline.integrity.damage import read_intact_codec
from pipeline.integrity.originals import Originals
from pipeline.integrity.verify import find_faults
from tests.helpers import reseal
from tests.helpers.memory import cost_of_verb
from tests.helpers.odd_values import ODD, Path_, leaves, replaced

LONGEST = 1500  # characters of a message
SMALL = re.compile(r"(plan|codec|gate|summary|repair)\.json|pass-0/(plan|manifest|quarantine|shard-00000)\.json")
OTHERS = re.compile(r"codec/(zarr|(feature_basis|score_expected)/zarr)\.json|pass-0/shard-00000\.tar:.*zarr\.json")
Change = tuple[str, Path_, str]  # file, path to the value, name of the odd value


def readers(root: Path) -> Iterator[Callable[[], Any]]:
    """Every way in which a command reads the files of a cache; none needs mmdet."""
    yield lambda: info_table(describe(root))
    yield partial(verify, root)
    yield lambda: read_recorded_passes(root)
    yield lambda: read_intact_codec(root)
    yield lambda: Originals(root, "0" * 64, lambda name: True).compare()
    yield lambda: Quarantine.load(root / "pass-0")
    yield lambda: [plan.samples for plan in load_pass_plan(root, 0)]
    yield partial(read_shards, root)
    yield lambda: write_manifest(root, 0, "", len(list(root.glob("pass-0/*.tar"))), 0, [], {})


def verify(root: Path) -> None:
    """Find all faults, and raise the one with the longest message."""
    faults = sorted(find_faults(root), key=lambda fault: len(str(fault)))
    if faults:
        raise faults[-1]


def read_shards(root: Path) -> None:
    cache = Cache(root)
    codec = open_codec(cache)
    check_pass(root, 0, cache.manifest(0), cache.codec_digest)
    for n, refs in enumerate(cache.references(0)):
        for ref in refs[:1]:
            cache.shard(0, n).read(ref.index, codec)


def changes(root: Path, names: re.Pattern[str]) -> list[Change]:
    found = [name for name in reseal.names(root) if names.fullmatch(name)]
    return [(name, at, odd) for name in found for at in leaves(reseal.load(root, name)) for odd in ODD]


def begin_repair(root: Path) -> None:
    """Write a repair.json, as an interrupted repair leaves it."""
    content = {"plan": "0" * 64, "files": {"pass-0/plan.json": "0" * 64}, "replaced": ["pass-0/plan.json"]}
    reseal.write(root / "repair.json", content)


def sweep(whole: Path, root: Path, todo: list[Change]) -> int:
    """Apply each change to a copy of a cache and read it. Return how many were refused."""
    refused = 0
    for name, at, odd in todo:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        reseal.change(root, name, replaced(reseal.load(root, name), at, ODD[odd]))
        errors = []
        for read in readers(root):
            try:
                read()
            except PipelineError as error:
                errors.append(error)
            except Exception as error:
                raise AssertionError(f"{name} {at} {odd}: {type(error).__name__}: {error}") from error
        assert all(len(message_of(error)) < LONGEST for error in errors), (name, at, odd)
        refused += bool(errors)
    return refused


def verbs(config: Path, root: Path, out: Path, like: Path) -> dict[str, tuple[Any, ...]]:
    """Every command that reads a cache, a codec to copy for `reencode` included."""
    flags = ("--config", config, "--cfg-options", f"cache.dir={root}", f"work_dir={out / 'run'}")
    return {
        "info": ("info", root),
        "verify": ("verify", root),
        "deep": ("verify", root, "--deep"),
        "live": ("verify", root, "--deep", "--config", config, "--views", 2),
        "export": ("export", root, "--image-id", min(Cache(like).images()), "-o", out / "export"),
        "report": ("report", root, "-o", out / "page.html"),
        "reencode": ("reencode", root, out / "recoded", "--like", like, "--jobs", 1),
        "plan": ("plan", *flags, "--samples", 2, "--seconds", 1),
        "stage1": ("stage1", *flags),
        "repair": ("repair", *flags),
        "stage2": ("stage2", *flags),
    }


def run_verbs(config: Path, folder: Path, todo: list[tuple[Change, str]], unfinished: bool = False) -> None:
    """Apply each change to a copy of a cache, and run a verb on it. `unfinished`: a shard is still to be made."""
    whole, root, out = config.parent / "cache", folder / "cache", folder / "out"
    for (name, at, odd), verb in todo:
        for old in (root, out):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(whole, root)
        out.mkdir()
        reseal.change(root, name, replaced(reseal.load(root, name), at, ODD[odd]))
        for path in (root / "pass-0/manifest.json", root / "pass-0/shard-00001.json") if unfinished else ():
            path.unlink()
        cost = cost_of_verb(*verbs(config, root, out, whole)[verb], log=out / "log")
        what, lines = (name, at, odd, verb, cost), cost.errors.splitlines()
        assert cost.code in (0, 2) and "Traceback" not in cost.errors, what
        assert max(map(len, lines), default=0) < LONGEST and cost.grown < 500 and cost.seconds < 30, what
        shown = sum(line.startswith("error: ") for line in lines)
        assert shown == (cost.code == 2) or (verb in ("verify", "deep", "live") and shown), what


@pytest.fixture
def whole(of_version: dict[str, Path], tmp_path: Path) -> Path:
    root = Path(shutil.copytree(of_version["frs"].parent / "cache", tmp_path / "whole"))
    begin_repair(root)
    return root


def test_the_digests_above_a_change_are_right(whole: Path, tmp_path: Path) -> None:
    """Otherwise nothing behind them would be tested: a change that the format allows is accepted."""
    for name in ("codec.json", "pass-0/plan.json", "pass-0/manifest.json", "plan.json"):
        root = Path(shutil.copytree(whole, tmp_path / name.replace("/", "-")))
        content = reseal.load(root, name)
        content.get("settings", content)["more"] = 1
        reseal.change(root, name, content)
        verify(root)
        read_shards(root)


def test_readers(whole: Path, tmp_path: Path) -> None:
    todo = random.Random(1).sample(changes(whole, SMALL), 60) + random.Random(1).sample(changes(whole, OTHERS), 15)
    assert 30 < sweep(whole, tmp_path / "cache", todo) < 75


@pytest.mark.slow
def test_readers_of_every_value(whole: Path, tmp_path: Path) -> None:
    todo = changes(whole, SMALL) + random.Random(1).sample(changes(whole, OTHERS), 500)
    assert sweep(whole, tmp_path / "cache", todo) > len(todo) // 3


def test_commands(made: dict[str, Path], tmp_path: Path) -> None:
    found = changes(made["frs"].parent / "cache", SMALL)
    names = ["verify", "deep", "export", "reencode", "stage1", "repair"]
    run_verbs(made["frs"], tmp_path, list(zip(random.Random(3).sample(found, len(names)), names)))


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["frs", "lossless"])
def test_every_command(made: dict[str, Path], tmp_path: Path, codec: str) -> None:
    whole, rng = made[codec].parent / "cache", random.Random(4)
    found, names = changes(whole, SMALL), list(verbs(made[codec], whole, tmp_path, whole))
    run_verbs(made[codec], tmp_path, [(rng.choice(found), name) for name in names * 12])
    found = [change for change in found if change[0] != "pass-0/manifest.json"]
    run_verbs(made[codec], tmp_path, [(rng.choice(found), name) for name in ("stage1", "repair") * 24], True)
