"""`reencode`: from a lossless cache, the bytes equal those of stage 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import read_json
from pipeline.cache.inspect import describe
from pipeline.cli.tables import info_table
from pipeline.errors import ConfigError, CorruptCache, StaleCache
from pipeline.integrity.verify import collect_findings
from pipeline.progress import Silent
from pipeline.tools.export import export_view
from pipeline.tools.reencode.run import reencode
from pipeline.tools.report.page import write_page
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector
from tests.helpers.stages import stage1, stage2, tree


def recode(
    source: Path, target: Path, *, jobs: int = 1, like: Path | None = None, config: Path | None = None, **codec: Any
) -> dict[str, Any]:
    config_path, like_path = (None if path is None else str(path) for path in (config, like))
    return reencode(
        str(source), str(target), {"type": "frs", **codec}, config_path, {}, like_path, jobs, lambda _: None, Silent()
    )


@pytest.fixture(scope="module")
def lossless(made: dict[str, Path]) -> Path:
    return made["lossless"].parent / "cache"


def test_from_lossless_to_the_byte(made: dict[str, Path], of_version: dict[str, Path], tmp_path: Path) -> None:
    """The teacher's weights are used for the calibration only. A damaged result is completed without them.

    A source of format version 1 gives a cache of version 2.
    """
    direct, lossless = made["frs"].parent / "cache", of_version["lossless"].parent / "cache"
    summary = recode(lossless, tmp_path / "new", config=of_version["lossless"])
    assert summary["views"] == summary["views_computed"] == 24
    assert tree(tmp_path / "new") == tree(direct)
    for name in ("pass-0/shard-00001.tar", "pass-1/shard-00000.json"):
        (tmp_path / "new" / name).unlink()
    assert 0 < recode(lossless, tmp_path / "new")["views_computed"] <= 8
    assert tree(tmp_path / "new") == tree(direct)


@pytest.mark.slow
def test_in_two_processes_like_another_cache(made: dict[str, Path], lossless: Path, tmp_path: Path) -> None:
    direct = made["frs"].parent / "cache"
    recode(lossless, tmp_path / "new", like=direct, jobs=2)
    assert tree(tmp_path / "new") == tree(direct)
    assert stage2(made["frs"], **{"cache.dir": str(tmp_path / "new")})["content"] == Cache(direct).content()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"profile": "universal"}, {"scores": False}])
def test_another_profile_to_the_byte(
    made: dict[str, Path], lossless: Path, tmp_path: Path, data: Path, teacher: dict[str, str], settings: dict[str, Any]
) -> None:
    codec = {f"cache.codec.{key}": value for key, value in {**settings, "quality": 0.2}.items()}
    stage1(
        make_config(data, teacher, detector("retinanet"), tmp_path / "direct", "frs", **codec, **{"cache.passes": 1})
    )
    shutil.copytree(lossless, tmp_path / "source")
    shutil.rmtree(tmp_path / "source/pass-1")
    summary = tmp_path / "source/summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "passes": 1}))
    recode(tmp_path / "source", tmp_path / "new", config=made["lossless"], **settings, quality=0.2)
    assert tree(tmp_path / "new") == tree(tmp_path / "direct/cache")


def test_without_class_scores(made: dict[str, Path], lossless: Path, tmp_path: Path) -> None:
    """A student without score loss trains the same, every verb reads the cache, and errors name the missing scores."""
    bare, alone = tmp_path / "bare", {"distill.score_weight": 0}
    recode(lossless, bare, config=made["lossless"], type="lossless", scores=False)
    assert collect_findings(bare, deep=True, progress=Silent())["whole"]
    here = {"cache.dir": str(bare), "cache.codec.scores": False}
    stage2(made["lossless"], work_dir=str(tmp_path / "whole"), **alone)
    stage2(made["lossless"], work_dir=str(tmp_path / "without"), **alone, **here)
    one, other = (torch.load(tmp_path / run / "epoch_1.pth", weights_only=False) for run in ("whole", "without"))
    assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())
    with pytest.raises(ConfigError, match=r"distill\.score_weight=0\.05: .* without class scores"):
        stage2(made["lossless"], work_dir=str(tmp_path / "refused"), **here)
    assert "no class scores" in info_table(describe(str(bare)))
    names = {path.name for path in export_view(str(bare), 100, 0, tmp_path / "out")}
    assert "features_0.npy" in names and not any(name.startswith("scores") for name in names)
    assert "not stored" in write_page(str(bare), tmp_path / "page.html").read_text()
    with pytest.raises(ConfigError, match="no class scores"):
        recode(bare, tmp_path / "back", config=made["lossless"])


def test_from_a_coded_source_the_errors_add_up(made: dict[str, Path], tmp_path: Path) -> None:
    """The error is measured against the teacher, not against the source."""
    source = made["frs"].parent / "cache"
    summary = recode(source, tmp_path / "coarse", config=made["frs"], quality=0.2)
    fine, coarse = (read_json(root / "codec.json")["settings"] for root in (source, tmp_path / "coarse"))
    for loss in ("feature", "score"):
        assert fine["probe_error"][loss] < coarse["probe_error"][loss] < 3 * 0.2
    assert summary["bytes"] < sum(Cache(source).manifest(number)["bytes"] for number in (0, 1))


def test_what_is_refused(made: dict[str, Path], lossless: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected --config .* or --like"):
        recode(lossless, tmp_path / "a")
    with pytest.raises(StaleCache, match="quality"):
        recode(lossless, tmp_path / "a", like=made["frs"].parent / "cache", quality="small")
    assert not (tmp_path / "a").exists()  # otherwise the correct command would find another cache there
    with pytest.raises(ConfigError, match=r"cache\.codec\.quality"):
        recode(lossless, tmp_path / "b", quality=7.0)
    recode(lossless, tmp_path / "c", like=made["frs"].parent / "cache")
    with pytest.raises(StaleCache, match="contains another cache"):
        recode(lossless, tmp_path / "c", quality="small", config=made["lossless"])
    broken = Path(shutil.copytree(lossless, tmp_path / "broken"))
    shard = broken / "pass-0/shard-00001.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptCache, match=r"shard-00001\.tar: sample"):
        recode(broken, tmp_path / "d", like=made["frs"].parent / "cache")
    assert not (tmp_path / "d/pass-0/shard-00001.tar").exists()
