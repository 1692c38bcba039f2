"""A cache that lacks a pass or a file is not called intact: `verify` says 'n of V passes' and exits with 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import read_json, write_json
from pipeline.cache.completeness import count_expected_passes
from pipeline.cache.manifest import write_manifest
from pipeline.integrity.verify import find_faults
from tests.helpers.configs import make_config
from tests.helpers.datasets import make_dataset
from tests.helpers.detectors import detector
from tests.helpers.servers import web_server
from tests.helpers.verbs import Run


@pytest.fixture
def cache(made: dict[str, Path], tmp_path: Path) -> Path:
    """A private copy of a finished cache of two passes."""
    return Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))


def lose(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def summarise(root: Path, passes: Any) -> None:
    (root / "summary.json").write_text(json.dumps({"passes": passes}))


def draw(root: Path) -> None:
    """Change the rule to drawn views: their number is not part of the recipe."""
    plan = read_json(root / "plan.json")
    plan["recipe"]["views"]["finite"] = None
    write_json(root / "plan.json", plan)
    before = {number: read_json(root / f"pass-{number}/manifest.json") for number in (0, 1)}
    cache = Cache(root)
    for number, manifest in before.items():
        shards = sum(name.endswith(".tar") for name in manifest["files"])
        write_manifest(root, number, cache.plan_digest, shards, 1, [], manifest["environment"])


LOST = {
    "all passes": (["pass-0", "pass-1"], "0 of 2 passes are complete: pass-0 is missing (and 1 more)"),
    "the first pass": (["pass-0"], "1 of 2 passes are complete: pass-0 is missing"),
    "the last pass": (["pass-1"], "1 of 2 passes are complete: pass-1 is missing"),
    "a manifest": (["pass-1/manifest.json"], "1 of 2 passes are complete: pass-1 has no manifest.json"),
    "a pass and the summary": (["pass-1", "summary.json"], "1 of 2 passes are complete: pass-1 is missing"),
    "the gate": (["gate.json"], "gate.json: missing"),
}


@pytest.mark.parametrize(("names", "words"), LOST.values(), ids=LOST)
def test_lost_files(run: Run, cache: Path, names: list[str], words: str) -> None:
    lose(cache, *names)
    code, out, err = run("verify", cache)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err and "run stage 1 again" in err
    code, out, _ = run("verify", cache, "--json")
    found = json.loads(out)
    left = sum((cache / f"pass-{n}/manifest.json").exists() for n in (0, 1))
    assert code == 2 and not found["whole"] and (found["passes"], found["expected_passes"]) == (left, 2)
    code, out, _ = run("info", cache)
    assert code == 0 and f" views in {left} of 2 passes" in out and ("not complete" in out) == (left < 2)


def test_complete_caches(run: Run, cache: Path) -> None:
    """A cache of fewer passes than views is complete if stage 1 finished it so; all views need no summary."""
    assert run("verify", cache)[1].endswith(", 2 of 2 passes\n")
    lose(cache, "summary.json")
    assert run("verify", cache)[1].endswith(", 2 of 2 passes\n")
    lose(cache, "pass-1")
    summarise(cache, 1)
    assert run("verify", cache)[1].endswith(", 1 of 1 passes\n")
    assert "12 views in 1 of 1 passes\n" in run("info", cache)[1]
    (cache / "pass-1").mkdir()  # stage 1 began another pass
    assert "1 of 2 passes are complete: pass-1 has no manifest.json" in run("verify", cache)[2]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"passes": "2"}', '{"passes": 0}', '{"passes": true}'])
def test_a_damaged_summary(run: Run, cache: Path, text: str) -> None:
    (cache / "summary.json").write_text(text)
    code, _, err = run("verify", cache)
    assert code == 2 and "summary.json: expected a JSON object with a number of passes; run stage 1 again" in err
    assert "24 views in 2 of 2 passes\n" in run("info", cache)[1]


def test_drawn_views(run: Run, cache: Path) -> None:
    """Only the summary or a config knows the number of draws."""
    draw(cache)
    assert not list(find_faults(cache)) and count_expected_passes(Cache(cache)) == 2
    assert "2 of 4 passes" in str(next(find_faults(cache, passes=4)))
    lose(cache, "pass-0")
    assert "1 of 2 passes are complete: pass-0 is missing" in str(next(find_faults(cache)))
    lose(cache, "summary.json")
    assert "12 views in 1 of an unknown number of passes; summary.json is missing\n" in run("info", cache)[1]
    (fault,) = find_faults(cache)
    assert "1 of an unknown number of passes" in str(fault) and "add --config C" in str(fault)
    assert "1 of 2 passes" in str(next(find_faults(cache, passes=2)))


def test_a_web_server_lists_no_folder(cache: Path) -> None:
    with web_server(cache) as server:
        assert not list(find_faults(server.address))
        lose(cache, "pass-0")
        assert "1 of 2 passes are complete: pass-0 is missing" in str(next(find_faults(server.address)))


def test_drawn_views_on_a_web_server(cache: Path) -> None:
    draw(cache)
    lose(cache, "pass-0")
    with web_server(cache) as server:
        assert Cache(server.address).passes() == [1]
        assert "1 of 2 passes are complete: pass-0 is missing" in str(next(find_faults(server.address)))


def test_a_lost_quarantine_is_named(run: Run, cache: Path) -> None:
    """Stage 1 reads quarantine.json, and would make other shards without it."""
    manifest = read_json(cache / "pass-0/manifest.json")
    write_json(cache / "pass-0/manifest.json", {**manifest, "quarantine": [[100, "cannot be read"]]})
    write_json(cache / "pass-0/quarantine.json", {"images": [[100, "cannot be read"]]})
    assert run("verify", cache)[0] == 0
    lose(cache, "pass-0/quarantine.json")
    code, _, err = run("verify", cache)
    assert code == 2 and "quarantine.json: lists 0 images, the manifest 1" in err and "repair" in err


def test_a_foreign_pass_is_named(run: Run, cache: Path) -> None:
    shutil.copytree(cache / "pass-1", cache / "pass-2")
    code, _, err = run("verify", cache)
    assert code == 2 and "pass-2: not a pass of this cache, because an image has 2 views" in err


def test_a_config_is_compared_without_the_teacher(
    run: Run, made: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.teacher.model.Teacher.__init__", lambda *_: pytest.fail("the teacher was built"))
    config = ["--config", made["frs"]]
    code, out, err = run("verify", cache, *config)
    assert (code, out.splitlines()[1]) == (0, f"config   {made['frs']} made this cache"), err
    code, _, err = run("verify", made["lossless"].parent / "cache", *config)
    assert code == 2 and "codec.type: the cache has 'lossless', the config wants 'frs'" in err
    code, _, err = run("verify", cache, *config, "--cfg-options", "views.seed=1")
    assert code == 2 and "views.seed" in err
    code, _, err = run("verify", cache, *config, "--cfg-options", "train_dataloader.dataset.indices=3")
    assert code == 2 and "planned for 12 images, the config's data set has 3" in err
    lose(cache, "pass-1")
    summarise(cache, 1)
    code, _, err = run("verify", cache, *config)
    assert code == 2 and "1 of 2 passes are complete: pass-1 is missing" in err
    assert run("verify", cache, *config, "--cfg-options", "cache.passes=1")[0] == 0


def test_another_data_set_is_named(run: Run, made: dict[str, Path], teacher: dict[str, str], tmp_path: Path) -> None:
    other = make_config(make_dataset(tmp_path / "data", seed=3), teacher, detector("retinanet"), tmp_path / "work")
    code, _, err = run("verify", made["frs"].parent / "cache", "--config", other)
    assert code == 2 and "annotations_sha256" in err


@pytest.mark.parametrize("verb", ["verify C --cfg-options a=1", "report C -o P --cfg-options a=1"])
def test_options_need_a_config(run: Run, verb: str) -> None:
    code, _, err = run(*verb.split())
    assert code == 2 and "--cfg-options: changes values of a config; add --config C" in err


def test_views_need_the_teacher(run: Run, cache: Path) -> None:
    for more in ([], ["--deep"]):
        code, _, err = run("verify", cache, "--views", 4, *more)
        assert code == 2 and "--views: the teacher compares views only with --deep and --config C" in err


UNFINISHED = {
    "after the gate": (["pass-0", "pass-1", "codec", "codec.json", "plan.json"], "plan.json is missing"),
    "in calibration": (["pass-0", "pass-1", "codec.json"], "codec.json is missing"),
}


@pytest.mark.parametrize(("names", "words"), UNFINISHED.values(), ids=UNFINISHED)
def test_a_cache_before_calibration_is_unfinished(
    run: Run, made: dict[str, Path], cache: Path, tmp_path: Path, names: list[str], words: str
) -> None:
    """Stage 1 was interrupted: nothing is damaged."""
    lose(cache, *names, "summary.json")
    config = ["--config", made["frs"], "--cfg-options", f"cache.dir={cache}"]
    for verb in (
        ["info", cache],
        ["verify", cache],
        ["verify", cache, "--deep", "--config", made["frs"]],
        ["export", cache, "--image-id", 100, "-o", tmp_path / "out"],
        ["report", cache, "-o", tmp_path / "page.html"],
        ["reencode", cache, tmp_path / "new", "--like", cache],
        ["stage2", *config, f"work_dir={tmp_path / 'run'}"],
    ):
        code, out, err = run(*verb)
        assert (code, out) == (2, "") and err.count("\n") == 1, verb
        assert f"stage 1 has not finished calibration ({words}); run stage 1 again" in err, verb


@pytest.mark.parametrize("name", ["plan.json", "codec.json"])
def test_a_lost_file_of_a_finished_cache_is_damage(run: Run, cache: Path, name: str) -> None:
    lose(cache, name)
    code, _, err = run("verify", cache)
    assert code == 2 and f"{name}: missing, but the cache has later files" in err and "repair" in err


def test_an_incomplete_source_is_not_copied(run: Run, made: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    """The new cache would have no trace of the lost pass."""
    lose(cache, "pass-1")
    target = tmp_path / "new"
    code, _, err = run("reencode", cache, target, "--like", made["frs"].parent / "cache")
    assert code == 2 and "1 of 2 passes are complete: pass-1 is missing" in err and not target.exists()
    views = [run("export", cache, "--image-id", 100, "--view", view, "-o", target) for view in (0, 1)]
    assert sorted(code for code, _, _ in views) == [0, 2]
    assert any("1 of 2 passes are complete" in err for _, _, err in views)


def test_nothing_is_here(run: Run, tmp_path: Path) -> None:
    code, _, err = run("verify", tmp_path)
    assert code == 2 and "no cache here (plan.json is missing); run stage 1 first" in err
