"""Both stages and every verb with the codec frs2, and both stages with each kind of detector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import read_json
from pipeline.progress import Silent
from pipeline.tools.export import decode_view, find_view
from pipeline.tools.reencode.run import reencode
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector, save_teacher
from tests.helpers.related import short_training
from tests.helpers.stages import stage1, stage2, tree
from tests.helpers.verbs import Run, verb_runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    return verb_runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def config(data: Path, teacher: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a finished cache; it names no codec type."""
    work = tmp_path_factory.mktemp("frs2")
    path = make_config(data, teacher, detector("retinanet"), work, None)
    with short_training():
        stage1(path)
    return path


@pytest.fixture
def cache(config: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(config.parent / "cache", tmp_path / "cache"))


def test_verify_and_repair(run: Run, config: Path, cache: Path) -> None:
    """Lost tables come from the copy, and a lost shard is computed again."""
    before, options = tree(cache), ("--cfg-options", f"cache.dir={cache}")
    code, out, err = run("verify", cache, "--deep", "--config", config, "--views", 4, "--json")
    worst = json.loads(out)["live"]["worst"]
    assert (code, err) == (0, "") and all(0 < value <= 1.001 for value in worst.values())
    (cache / "codec" / "net_first" / "c" / "0" / "0" / "0" / "0").unlink()
    (cache / "pass-0" / "shard-00000.json").unlink()
    assert run("verify", cache)[0] == 2
    code, out, _ = run("repair", "--config", config, *options)
    assert code == 0 and "restored from codec-copy" in out and tree(cache) == before


def test_verbs_read_the_cache(run: Run, config: Path, cache: Path, tmp_path: Path) -> None:
    code, out, _ = run("info", cache)
    assert code == 0 and "frs2, quality balanced: gradient error on the probe" in out
    code, _, _ = run("export", cache, "--image-id", 104, "--view", 1, "-o", tmp_path / "out")
    _, output = decode_view(Cache(cache), find_view(Cache(cache), 104, 1))
    assert code == 0 and np.array_equal(np.load(tmp_path / "out/scores_2.npy"), output.scores[2][0].numpy())
    code, _, _ = run("report", cache, "-o", tmp_path / "page.html", "--config", config, "--samples", 2)
    assert code == 0 and "tenth" in (tmp_path / "page.html").read_text()
    assert stage2(config)["content"] == Cache(cache).content()


@pytest.mark.slow
def test_reencode_gives_the_bytes_of_stage_1(config: Path, made: dict[str, Path], tmp_path: Path) -> None:
    """Calibrated again, and with the codec of the finished cache."""
    cache, source = config.parent / "cache", str(made["lossless"].parent / "cache")
    for name, codec_of in (("new", (str(made["lossless"]), {}, None)), ("like", (None, {}, str(cache)))):
        with short_training():
            reencode(source, str(tmp_path / name), {}, *codec_of, 1, lambda _: None, Silent())
        assert tree(tmp_path / name) == tree(cache)


@pytest.mark.slow
def test_plan_forecasts_the_size(run: Run, config: Path, tmp_path: Path) -> None:
    """With time for all views; a plan that runs out of time calibrates on fewer, and says so."""
    words = ("plan", "--config", config, "--samples", 24, "--seconds", 600, "--json", "--cfg-options")
    with short_training():
        code, out, _ = run(*words, f"cache.dir={tmp_path / 'new'}")
    forecast, manifests = json.loads(out), [Cache(config.parent / "cache").manifest(number) for number in (0, 1)]
    assert code == 0 and forecast["bytes_low"] <= sum(m["bytes"] for m in manifests) <= forecast["bytes_high"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fcos", "gfl", "faster-rcnn"])
def test_both_stages(run: Run, data: Path, tmp_path: Path, kind: str) -> None:
    teacher = save_teacher(tmp_path, detector(kind, depth=18))
    config = make_config(data, teacher, detector(kind), tmp_path, "frs2", **{"cache.calibration_views": 16})
    with short_training(30):
        stage1(config)
    code, out, err = run("verify", tmp_path / "cache", "--deep", "--config", config, "--views", 4, "--json")
    worst = json.loads(out)["live"]["worst"]
    assert (code, err) == (0, "") and all(0 < value <= 1.001 for value in worst.values())
    assert read_json(tmp_path / "cache/codec.json")["settings"]["type"] == "frs2"
    assert stage2(config)["epochs"] == 1
