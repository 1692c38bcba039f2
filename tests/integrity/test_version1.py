"""A cache of format version 1 stays one: it is read, resumed, grown and repaired, and its bytes keep their meaning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import digest, read_json
from pipeline.cache.existing import find_version
from pipeline.cache.inspect import describe
from pipeline.cache.versions import VERSION
from pipeline.codecs.group import open_codec
from pipeline.integrity.verify import collect_findings
from pipeline.progress import Silent
from pipeline.tools.export import export_view
from pipeline.tools.report.page import write_page
from tests.helpers.distillation import distiller_and_batch, step
from tests.helpers.stages import stage1, tree


@pytest.fixture
def cache(made_1: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_1["frs"].parent / "cache", tmp_path / "cache"))


def test_it_grows_and_resumes_as_version_1(made_1: dict[str, Path], cache: Path) -> None:
    whole = tree(cache)
    shutil.rmtree(cache / "pass-1")
    (cache / "pass-0/manifest.json").unlink()
    (cache / "pass-0/shard-00001.json").unlink()

    summary = stage1(made_1["frs"], **{"cache.dir": str(cache)})

    assert tree(cache) == whole and 12 < summary["views_computed"] < 24
    assert Cache(cache).version == 1 and read_json(cache / "plan.json")["recipe"]["format"][1] == 1


@pytest.mark.parametrize("lost", ["plan.json", "codec.json", "pass-0/shard-00000.json", "pass-1/shard-00001.tar"])
def test_repair_restores_its_bytes(run, made_1: dict[str, Path], cache: Path, lost: str) -> None:
    whole = tree(cache)
    (cache / lost).unlink()

    code, out, err = run("repair", "--config", made_1["frs"], "--cfg-options", f"cache.dir={cache}")

    assert code == 0, err
    assert tree(cache) == whole and "byte for byte equal to the original" in out + err


def test_all_verbs_read_it(made_1: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    found = describe(cache)
    assert found["format"][1] == 1 and set(found["bytes_by_tensor"]) >= {
        "features",
        "scores",
        "frs",
        "record",
        "overhead",
    }
    assert found["calibration"]["views"] > 0
    report = collect_findings(cache, True, Silent())
    assert report["whole"] and report["decoded"] == 24
    assert len(export_view(str(cache), 101, 0, tmp_path / "out")) > 10
    write_page(str(cache), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 1e4


def test_both_versions_decode_to_the_same_numbers(made: dict[str, Path], made_1: dict[str, Path]) -> None:
    old, new = (Cache(configs["frs"].parent / "cache") for configs in (made_1, made))
    codecs = open_codec(old), open_codec(new)
    assert codecs[0].settings == codecs[1].settings
    for ref in old.references(0)[0]:
        one, two = (cache.shard(0, 0).view(ref.index, codec) for cache, codec in zip((old, new), codecs, strict=True))
        assert one[0].row(one[1]).tolist() == two[0].row(two[1]).tolist()
        assert all((one[2][name] == two[2][name]).all() for name in one[2]) and one[2].keys() == two[2].keys()


def test_its_content_digest_is_that_of_its_tars(cache: Path) -> None:
    opened = Cache(cache)
    seals = {name: json.loads((cache / f"{name}.json").read_bytes())["seal"] for name in ("plan", "codec")}
    files = {str(n): opened.manifest(n)["files"] for n in opened.passes()}
    passes = {n: {k: v["sha256"] for k, v in rows.items() if k.endswith(".tar")} for n, rows in files.items()}
    assert opened.content() == digest({**seals, "passes": passes})


def test_the_version_of_a_folder(cache: Path, tmp_path: Path) -> None:
    assert find_version(cache) == 1 and find_version(tmp_path / "none") == VERSION == 2
    (cache / "plan.json").write_bytes(b"{")
    assert find_version(cache) == 1, "the sidecars tell"
    for path in cache.glob("pass-*/shard-*.json"):
        path.unlink()
    assert find_version(cache) == VERSION


def test_stage_2_learns_the_same_from_both_versions(made: dict[str, Path], made_1: dict[str, Path]) -> None:
    losses = [step(*distiller_and_batch(configs["frs"], "cache"))[0] for configs in (made_1, made)]
    assert losses[0].keys() == losses[1].keys() and losses[0]
    assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())
