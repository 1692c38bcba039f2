"""Both stages, verify and repair with the codec frs2, for each kind of detector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cache.canonical import read_json
from pipeline.codecs.frs2 import fit_scores
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector, save_teacher
from tests.helpers.stages import stage1, stage2, tree
from tests.helpers.verbs import Run, verb_runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    return verb_runner(monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "fcos", "gfl", "faster-rcnn"])
def test_both_stages(run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(fit_scores, "STEPS", 30)
    teacher = save_teacher(tmp_path, detector(kind, depth=18))
    config = make_config(data, teacher, detector(kind), tmp_path, "frs2", **{"cache.calibration_views": 16})
    cache = tmp_path / "cache"

    stage1(config)

    assert read_json(cache / "codec.json")["settings"]["type"] == "frs2"
    before = tree(cache)
    code, out, err = run("verify", cache, "--deep", "--config", config, "--views", 4, "--json")
    worst = json.loads(out)["live"]["worst"]
    assert (code, err) == (0, "") and all(0 < value <= 1.001 for value in worst.values())
    (cache / "codec" / "feature_basis" / "c" / "0" / "0" / "0").write_bytes(b"")
    (cache / "pass-0" / "shard-00000.json").unlink()
    code, out, _ = run("repair", "--config", config)
    assert code == 0 and "restored from codec-copy" in out and tree(cache) == before
    assert stage2(config)["epochs"] == 1
