"""`verify` lists every damaged file, and `repair` restores the original bytes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.canonical import read_json, write_json
from pipeline.cache.manifest import write_manifest
from pipeline.cache.quarantine import Quarantine
from pipeline.cache.reader import ShardReader
from pipeline.cache.versions import FORMATS
from pipeline.errors import CacheError
from pipeline.integrity.originals import Originals
from pipeline.integrity.repair_pass import PassRepair
from pipeline.storage.files import checksum
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector, save_teacher
from tests.helpers.stages import tree


def flip(path: Path, at: int = -1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at if at >= 0 else len(raw) // 2] ^= 4
    path.write_bytes(raw)


@pytest.fixture
def work(made: dict[str, Path], tmp_path: Path) -> Path:
    """A private copy of a finished cache."""
    return Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))


def test_verify_lists_every_damaged_file(run, work: Path) -> None:
    code, out, err = run("verify", work, "--json")
    assert (code, json.loads(out)["whole"], err) == (0, True, "")
    bad = [work / "pass-0/shard-00001.tar", work / "pass-1/shard-00000.json", work / "gate.json"]
    for path in bad:
        flip(path)
    code, out, err = run("verify", work, "--json")
    found = json.loads(out)
    assert code == 2 and not found["whole"] and len(found["bad"]) == 3
    assert all(any(str(path) in line for line in found["bad"]) for path in bad)
    assert err.startswith("error: ") and "and 2 more" in err and err.count("\n") == 1
    code, out, err = run("verify", work)
    assert (code, out) == (2, "")


def test_verify_continues_after_a_bad_sector(run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = work / "pass-0/shard-00001.tar"
    flip(work / "pass-1/shard-00000.tar")

    def read(path: Path, expected: int | None = None) -> dict[str, Any]:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return checksum(path, expected)

    monkeypatch.setattr("pipeline.cache.manifest.checksum", read)
    code, out, _ = run("verify", work, "--json")
    assert code == 2 and [str(bad) in line for line in json.loads(out)["bad"]] == [True, False]


@pytest.mark.parametrize("codec", ["frs", "lossless"])
def test_verify_deep_compares_with_the_live_teacher(run, made: dict[str, Path], codec: str) -> None:
    config = made[codec]
    code, out, _ = run("verify", config.parent / "cache", "--deep", "--config", config, "--views", 6, "--json")
    found = json.loads(out)
    assert code == 0 and found["decoded"] == 24 and found["live"]["views"] >= 6
    worst = found["live"]["worst"]
    assert worst.keys() == {"features", "scores", "frs"}
    assert all(0.9 < value <= 1.0001 for value in worst.values()) if codec == "frs" else not any(worst.values())


def test_verify_deep_finds_a_wrong_shard_with_correct_checksums(run, made: dict[str, Path], work: Path) -> None:
    """A wrong shard with correct digests: only the plan or the teacher reveals it."""
    from pipeline.cache.cache import Cache
    from pipeline.cache.manifest import write_manifest

    cache = Cache(work)
    before = cache.manifest(0)
    for suffix in (".tar", ".json"):
        shutil.copy(work / f"pass-1/shard-00000{suffix}", work / f"pass-0/shard-00000{suffix}")
    write_manifest(work, 0, cache.plan_digest, len(cache.references(0)), 1, [], before["environment"])
    assert run("verify", work)[0] == 0
    code, _, err = run("verify", work, "--deep")
    assert code == 2 and "its views are not those of its pass's plan.json" in err


def test_verify_deep_needs_the_caches_own_teacher(
    run, made: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before the cache is read and decoded."""
    monkeypatch.setattr(
        "pipeline.integrity.verify.collect_findings", lambda *_: pytest.fail("the cache was read first")
    )
    other = save_teacher(tmp_path / "other", detector("retinanet"), seed=5)
    config = make_config(data, other, detector("retinanet"), tmp_path)
    code, _, err = run("verify", made["frs"].parent / "cache", "--deep", "--config", config)
    assert code == 2 and "teacher weights' sha256" in err


EQUAL = "byte for byte equal to the original"
UNKNOWN = "the original digest of {} is unknown (first: {})"
DAMAGE = {
    "one shard, one sidecar": (["pass-0/shard-00001.tar", "pass-1/shard-00000.json"], EQUAL),
    "a pass's plan": (["pass-0/plan.json"], EQUAL),
    "the codec's tables": (["codec/feature_mean/c/0/0/0"], EQUAL),
    "the codec's settings": (["codec.json"], EQUAL),
    "identity": (["plan.json"], EQUAL),
    "the gate": (["gate.json"], UNKNOWN.format("1 file", "gate.json")),
    "a manifest and its plan": (
        ["pass-0/manifest.json", "pass-0/plan.json"],
        UNKNOWN.format("2 files", "pass-0/plan.json"),
    ),
    "a manifest, shard and sidecar": (
        ["pass-0/manifest.json", "pass-0/shard-00001.json"],
        UNKNOWN.format("3 files", "pass-0/shard-00001.tar"),
    ),
    "a manifest and a shard": (  # the sidecar has the shard's digest
        ["pass-1/manifest.json", "pass-1/shard-00000.tar"],
        UNKNOWN.format("1 file", "pass-1/manifest.json"),
    ),
    "identity, gate and a shard": (
        ["plan.json", "gate.json", "pass-0/shard-00000.tar"],
        UNKNOWN.format("1 file", "gate.json"),
    ),
}


QUICK = ("one shard, one sidecar", "the codec's tables", "a manifest and a shard", "the gate")


@pytest.mark.parametrize(
    ("names", "result"),
    [pytest.param(*v, id=k, marks=() if k in QUICK else pytest.mark.slow) for k, v in DAMAGE.items()],
)
def test_repair_restores_the_original(run, made: dict[str, Path], work: Path, names: list[str], result: str) -> None:
    """The result is called equal only where the digest of every original is known."""
    before = tree(work)
    bad = {(work / name).with_suffix(".tar") for name in names}
    untouched = {path: path.stat().st_mtime_ns for path in work.rglob("*.tar") if path not in bad}
    for name in names:
        flip(work / name)
    assert run("verify", work)[0] == 2
    code, out, err = run("repair", "--config", made["frs"], "--cfg-options", f"cache.dir={work}")
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if line.startswith("result   "))
    assert tree(work) == before and result in line and (EQUAL in line) == (result == EQUAL)
    assert all(path.stat().st_mtime_ns == when for path, when in untouched.items())
    assert run("verify", work, "--deep")[0] == 0
    code, out, _ = run("repair", "--config", made["frs"], "--cfg-options", f"cache.dir={work}")
    assert code == 0 and out == "intact   nothing to repair\n"


def interrupt(*_: Any) -> None:
    raise CacheError("interrupted")


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True])
def test_a_repeated_repair_knows_the_original(
    run, made: dict[str, Path], work: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """The first repair is killed after it deleted a manifest; only repair.json then has the original digests."""
    before = tree(work)
    flip(work / "pass-0/shard-00001.tar")
    options = ["--config", made["frs"], "--cfg-options", f"cache.dir={work}"]
    if changed:  # as if another machine had made the original
        manifest = read_json(work / "pass-0/manifest.json")
        manifest["files"]["shard-00001.tar"]["sha256"] = "0" * 64
        write_json(work / "pass-0/manifest.json", manifest)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.integrity.repair.cache_teacher", interrupt)
        assert run("repair", *options)[0] == 2
        assert not (work / "pass-0/manifest.json").exists() and (work / "repair.json").exists()
        flip(work / "pass-0/shard-00000.tar")  # a later damage is found with the digests of the first repair
        assert run("repair", *options)[0] == 2
    code, out, err = run("repair", *options)
    assert code == 0 and tree(work) == before, err
    if changed:
        assert "differ from the original (first: pass-0/shard-00001.tar)" in out and "new content digest" in out
    else:
        assert EQUAL in out
    assert run("repair", *options)[1] == "intact   nothing to repair\n"


def test_a_repeated_repair_remembers_what_is_unknown(
    run, made: dict[str, Path], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 measured the gate again before it was killed, so the second repair finds nothing damaged."""
    options = ["--config", made["frs"], "--cfg-options", f"cache.dir={work}"]
    gate = (work / "gate.json").read_bytes()
    (work / "gate.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.integrity.repair.cache_teacher", interrupt)
        assert run("repair", *options)[0] == 2
    (work / "gate.json").write_bytes(gate)
    code, out, _ = run("repair", *options)
    assert code == 0 and UNKNOWN.format("1 file", "gate.json") in out and EQUAL not in out
    assert not (work / "repair.json").exists()


def test_the_digests_of_another_cache_are_ignored(run, made: dict[str, Path], work: Path) -> None:
    options = ["--config", made["frs"], "--cfg-options", f"cache.dir={work}"]
    write_json(work / "repair.json", {"plan": "0" * 64, "files": {"gate.json": "0" * 64}, "replaced": ["gate.json"]})
    assert "intact   nothing to repair" in run("repair", *options)[1]
    (work / "repair.json").write_text("{")
    code, out, _ = run("repair", *options)
    assert code == 0 and UNKNOWN.format("1 file", "repair.json") in out


def test_repair_computes_a_lost_pass(run, made: dict[str, Path], work: Path) -> None:
    before = tree(work)
    shutil.rmtree(work / "pass-1")
    (work / "summary.json").write_text("")
    code, out, err = run("repair", "--config", made["frs"], "--cfg-options", f"cache.dir={work}")
    assert code == 0 and tree(work) == before, err
    assert "pass-1: missing; computed" in out and "summary.json: rewritten" in out
    assert UNKNOWN.format("1 file", "pass-1/manifest.json") in out and EQUAL not in out
    assert run("verify", work)[0] == 0


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("damage", ["lost", "cut", "other rows", "more fields"])
def test_a_quarantine_is_rewritten_from_the_manifest(tmp_path: Path, damage: str, version: int) -> None:
    folder, plan = tmp_path / "pass-0", {"pass": 0, "shards": []}
    write_json(folder / "plan.json", plan)
    rows = [[7, "cannot be read"]]
    Quarantine(dict(rows)).save(folder)
    manifest = write_manifest(tmp_path, 0, "p", 0, 0, rows, {}, version)
    assert ("quarantine.json" in manifest["files"]) == (version == 2)
    before = tree(tmp_path)
    path = folder / "quarantine.json"
    if damage == "lost":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "more fields":
        write_json(path, {"images": rows, "more": 1})
    else:
        Quarantine({}).save(folder)
    work = PassRepair(folder, {}, Originals(tmp_path, "p", FORMATS[version].covers))
    work.find()
    if (damage, version) == ("more fields", 1):  # nothing of version 1 has the bytes of this file
        assert not work.bad
        return
    assert work.bad == [f"{path}: rewritten from the manifest"]
    work.clear()
    assert path.read_bytes() and tree(tmp_path)["pass-0/quarantine.json"] == before["pass-0/quarantine.json"]


def test_repair_keeps_files_that_stage_1_does_not_make(run, made: dict[str, Path], work: Path) -> None:
    """A pass that the config does not make would lose its manifest. Other folders belong to the user."""
    (work / "pass-1").rename(work / "pass-1.old")
    options = ["--config", made["frs"], "--cfg-options", f"cache.dir={work}", "cache.passes=1"]
    (work / "pass-notes").write_text("mine")
    (work / "codec/.DS_Store").write_text("")
    assert run("verify", work)[0] == 2
    code, out, err = run("repair", *options)
    assert code == 0 and out.count("damaged  ") == 1 and ".DS_Store: not a file of the cache; removed" in out, err
    assert run("verify", work)[0] == 0
    (work / "pass-1.old").rename(work / "pass-1")
    flip(work / "pass-1/shard-00000.tar")
    before = tree(work)
    code, _, err = run("repair", *options)
    assert code == 2 and "found pass-1, but this config makes 1 passes" in err and tree(work) == before


def test_repair_refuses_what_it_cannot_restore(
    run, made: dict[str, Path], data: Path, work: Path, tmp_path: Path
) -> None:
    other = make_config(
        data, save_teacher(tmp_path / "o", detector("retinanet"), seed=5), detector("retinanet"), tmp_path
    )
    flip(work / "plan.json")
    before = tree(work)
    code, _, err = run("repair", "--config", other, "--cfg-options", f"cache.dir={work}")
    assert code == 2 and "made with another config" in err and tree(work) == before
    run("repair", "--config", made["frs"], "--cfg-options", f"cache.dir={work}")
    # Tables of another machine: calibrating here gives another digest than that of the shards.
    sidecars = sorted(work.glob("pass-*/shard-*.json"))
    for path in sidecars:
        write_json(path, {**read_json(path), "codec": "f" * 64})
    (work / "codec.json").unlink()
    code, _, err = run("repair", "--config", made["frs"], "--cfg-options", f"cache.dir={work}")
    assert code == 2 and "calibrating again gave other tables" in err and "from a copy" in err
    assert all(path.with_suffix(".tar").exists() for path in sidecars)
    assert ShardReader(sidecars[0].with_suffix(".tar")).read(0)


@pytest.mark.parametrize("name", ["pass-0/shard-00000.tar", "images/shard-00000.tar", "codec-copy/codec.json"])
def test_a_repair_remembers_the_originals_of_an_interrupted_one(tmp_path: Path, name: str) -> None:
    first = Originals(tmp_path, "p", lambda _: True)
    first.replace(tmp_path / name, "0" * 64)
    first.save()
    again = Originals(tmp_path, "p", lambda _: True)
    assert again.earlier == {name} and again.sha256(tmp_path / name) == "0" * 64
