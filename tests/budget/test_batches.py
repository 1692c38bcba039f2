"""Views that are decoded together, and files that are hashed, cost no more than the budget allows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.budget import BUDGET
from pipeline.cache.cache import Cache
from pipeline.config import load_config
from pipeline.errors import CodecError, ConfigError, CorruptCache, PipelineError
from pipeline.integrity.compare_teacher import compare_live
from pipeline.progress import Silent
from pipeline.storage.files import checksum
from pipeline.tools.reencode.run import reencode
from tests.helpers import reseal
from tests.helpers.memory import cost_of, cost_of_verb, refused
from tests.helpers.stages import prepared_stream, stage1

TERA = 1 << 40


def live(config: Path, root: Path) -> None:
    compare_live(*load_config(str(config), {"cache.dir": str(root)}), 4)


def recode(config: Path, root: Path) -> None:
    like = str(config.parent / "cache")
    reencode(str(root), str(root.parent / "new"), {"type": "frs"}, None, {}, like, 1, lambda text: None, Silent())


def train(config: Path, root: Path) -> None:
    next(iter(prepared_stream(config, **{"cache.dir": str(root)})))


def make(config: Path, root: Path) -> None:
    (root / "pass-0/manifest.json").unlink()
    stage1(config, **{"cache.dir": str(root)})


CALLS: dict[str, tuple[Callable[[Path, Path], None], type[PipelineError], str]] = {
    "verify --deep --config": (live, CorruptCache, r"shard-0000\d\.tar: .*; the batches of its pass's plan.json"),
    "reencode": (recode, CorruptCache, r"shard-0000\d\.tar: .*; the batches of its pass's plan.json"),
    "stage 2": (train, ConfigError, "train_dataloader.batch_size: .*; reduce it"),
    "stage 1": (make, CodecError, "views of padded shape .* a smaller cache.batch_size"),
}


@pytest.mark.parametrize("name", CALLS)
def test_views_that_are_decoded_together(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    call, error, words = CALLS[name]
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    monkeypatch.setattr("pipeline.cache.plausible.BUDGET", replace(BUDGET, step_bytes=1000))
    with pytest.raises(error, match=words) as raised:
        call(made["frs"], root)
    assert "expected at most 1000, found" in str(raised.value) and "\n" not in str(raised.value)


def test_a_sample_is_not_larger_than_its_grids_allow(made: dict[str, Path], tmp_path: Path) -> None:
    """A sparse shard under right checksums: its sample would be read whole before anything in it is checked."""
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    path = root / "pass-0/shard-00000.tar"
    sidecar, raw = reseal.read(path.with_suffix(".json")), path.read_bytes()
    at, size, *_ = sidecar["samples"][0]
    more = 64 << 20
    sidecar["samples"][0][1] += more
    for row in sidecar["samples"][1:]:
        row[0] += more
    sidecar["tail"]["offset"] += more
    reseal.write_shard(path, sidecar, raw[: at + size] + bytes(more) + raw[at + size :])
    reseal.renew_manifests(root)
    with pytest.raises(CorruptCache, match=r"sample 0 \(image .*: bytes: expected at most \d+, found \d+ by its FPN"):
        Cache(root).shard(0, 0).read(0)


@pytest.mark.parametrize("name", ["pass-0/shard-00000.tar", "codec/feature_basis/c/0/0/0", "pass-0/shard-00000.json"])
def test_a_sparse_file_is_not_hashed(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    whole = (root / name).read_bytes()
    with open(root / name, "r+b") as file:
        file.truncate(TERA)
    refused(cost_of_verb("verify", root, log=tmp_path / "log"), Path(name).name, 64)
    flags = ("--config", made["frs"], "--cfg-options", f"cache.dir={root}")
    cost = cost_of_verb("repair", *flags, log=tmp_path / "log")
    assert cost.code == 0 and cost.seconds < 60 and (root / name).read_bytes() == whole, cost


def test_a_checksum_stops_at_the_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(TERA)
    for limit in ({"most": 1 << 20}, {"expected": 1 << 20}):
        assert checksum(path, **limit) == {"bytes": TERA, "sha256": None}
    cost = cost_of(checksum, path, 1, log=tmp_path / "log")
    assert cost.code == 0 and cost.seconds < 1
