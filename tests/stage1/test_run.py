"""Stage 1: killed and resumed, a deleted shard, more passes, broken images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.cache import Cache
from pipeline.data.views import Views
from pipeline.errors import DataError
from tests.helpers.configs import make_config
from tests.helpers.datasets import make_dataset
from tests.helpers.detectors import detector
from tests.helpers.forks import exit_code, in_child
from tests.helpers.stages import stage1, stage2, tree


def test_kill_and_resume(made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path) -> None:
    """After two kills, the same command gives the bytes of an undisturbed run."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    root = tmp_path / "cache"
    for wanted in ("pass-0/shard-00000.tar", "pass-0/shard-00001.tar"):
        child = in_child(stage1, config)
        while not (root / wanted).exists():
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        assert exit_code(child) == -signal.SIGKILL
        assert not (root / "pass-1/manifest.json").exists()
    assert (root / "pass-0/shard-00000.tar").exists()
    summary = stage1(config)
    assert summary["views_computed"] < summary["views"] == 24
    assert tree(root) == tree(made["frs"].parent / "cache")
    assert stage1(config)["views_computed"] == 0


def test_only_a_deleted_shard_is_recomputed(made: dict[str, Path], tmp_path: Path) -> None:
    work = Path(shutil.copytree(made["frs"].parent, tmp_path / "work"))
    before = tree(work / "cache")
    (work / "cache/pass-1/shard-00001.tar").unlink()
    summary = stage1(made["frs"], **{"cache.dir": str(work / "cache")})
    assert 0 < summary["views_computed"] <= 4
    assert tree(work / "cache") == before


def test_a_cache_grows_by_passes(made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path) -> None:
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs", **{"cache.passes": 1})
    assert stage1(config)["views"] == 12
    first = tree(tmp_path / "cache")
    assert stage1(config, **{"cache.passes": 2})["views_computed"] == 12
    grown = tree(tmp_path / "cache")
    assert {name: grown[name] for name in first} == first
    assert grown == tree(made["frs"].parent / "cache")


def test_quarantine(data: Path, teacher: dict, tmp_path: Path) -> None:
    """Stage 1 names a broken image and stops. With cache.quarantine it is listed and left out, and stage 2 runs."""
    whole, data = data, make_dataset(tmp_path / "data")
    (data / "images" / "003.jpg").write_bytes(b"not a picture")
    val = {"val_dataloader.dataset.data_root": str(whole), "val_evaluator.ann_file": str(whole / "annotations.json")}
    config = make_config(data, teacher, detector("retinanet"), tmp_path / "work", "frs", **val)
    with pytest.raises(DataError, match=r"image 103 .*003\.jpg"):
        stage1(config)
    summary = stage1(config, **{"cache.quarantine": True})
    assert (summary["views"], summary["quarantined"]) == (22, 2)
    listed = json.loads((tmp_path / "work/cache/pass-0/quarantine.json").read_text())
    assert listed["images"][0][0] == 103 and "003.jpg" in listed["images"][0][1]
    assert stage2(config)["images"] == 11


def test_quarantine_reads_each_view_once(
    data: Path, teacher: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a shard without any readable image is made, and each shard can be made again."""
    whole, data = data, make_dataset(tmp_path / "data")
    val = {"val_dataloader.dataset.data_root": str(whole), "val_evaluator.ann_file": str(whole / "annotations.json")}
    options = {"cache.quarantine": True, "cache.shard_samples": 2, "cache.passes": 1}
    config = make_config(data, teacher, detector("retinanet"), tmp_path / "work", "lossless", **val, **options)
    for number in (0, 1, 6):
        (data / "images" / f"{number:03d}.jpg").write_bytes(b"not a picture")
    seen: list[int] = []
    replay = Views.replay

    def counted(self: Views, info: dict[str, Any], *given: Any, **more: Any) -> Any:
        seen.append(info["img_id"])
        return replay(self, info, *given, **more)

    monkeypatch.setattr(Views, "replay", counted)
    summary = stage1(config)
    assert (summary["views"], summary["quarantined"]) == (9, 3)
    root = tmp_path / "work/cache"
    calibrated = {image for part in Cache(root).codec_measured.values() if isinstance(part, list) for image, _ in part}
    once = set(seen) - calibrated - {100, 101, 106}  # calibration may have read the others too
    assert len(once) >= 3 and max(seen.count(image) for image in once) == 1
    before = tree(root)
    for shard in sorted(root.glob("pass-0/shard-*.json")):
        shard.unlink()
        (root / "pass-0/manifest.json").unlink()
        stage1(config)
        assert tree(root) == before
