"""`cache.images=True`: the cache stores the file of each image once, and stage 2 needs no image folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset as wds

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import write_json
from pipeline.cache.image_shards import write_image_manifest
from pipeline.cache.inspect import describe
from pipeline.cache.tar import END
from pipeline.config import load_config
from pipeline.data.shard_planning import images_and_views
from pipeline.errors import CacheError, CorruptCache, ReplayMismatch
from pipeline.integrity.repair import repair
from pipeline.integrity.verify import collect_findings, verify
from pipeline.progress import Silent
from pipeline.tools.export import export_view
from pipeline.tools.forecast.image_files import add_image_files
from pipeline.tools.reencode.run import reencode
from tests.helpers.configs import make_config
from tests.helpers.datasets import make_dataset
from tests.helpers.detectors import detector
from tests.helpers.forks import exit_code, in_child
from tests.helpers.servers import web_server
from tests.helpers.stages import prepared_stream, stage1, stage2, tree


def found_in(root: Path, image: int) -> bytes:
    return Cache(root).stored_images().read(image)


@pytest.fixture(scope="module")
def stored(data: Path, teacher: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose cache stores its images: 12 in three shards, two passes."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path_factory.mktemp("stored"), "frs")
    stage1(config, **{"cache.images": True})
    return config


def change(stored: Path, folder: Path) -> Path:
    """Copy a cache for a test that changes it. Return its root."""
    return Path(shutil.copytree(stored.parent / "cache", folder / "cache"))


def test_each_file_is_stored_once_byte_for_byte(stored: Path, data: Path, made: dict[str, Path]) -> None:
    """The shards of the passes are those of a cache without images, and webdataset streams the files."""
    root = stored.parent / "cache"
    found = {}
    for tar in sorted((root / "images").glob("*.tar")):
        for sample in wds.WebDataset(str(tar), shardshuffle=False):
            assert int(sample["__key__"]) not in found
            found[int(sample["__key__"])] = sample["jpg"]
    assert found == {100 + n: (data / "images" / f"{n:03d}.jpg").read_bytes() for n in range(12)}
    assert {name: sha for name, sha in tree(root).items() if not name.startswith("images/")} == tree(
        made["frs"].parent / "cache"
    )
    planned = [image for shard in Cache(root).references(0) for image in (ref.image_id for ref in shard)]
    assert [i for ids in json.loads((root / "images/plan.json").read_text())["shards"] for i in ids] == planned
    size = sum(path.stat().st_size for path in (root / "images").glob("*.tar"))
    assert describe(root)["stored_images"] == {"images": 12, "bytes": size}
    assert verify(root)["bytes"] == size + describe(root)["bytes"]


@pytest.mark.parametrize("workers", [0, 1])
def test_stage_2_without_the_image_folder(
    workers: int, stored: Path, data: Path, teacher: dict[str, str], tmp_path: Path
) -> None:
    """Trains to the same weights, to the bit, as with the folder."""
    held = make_dataset(tmp_path / "data")
    val = {"val_dataloader.dataset.data_root": str(data), "val_evaluator.ann_file": str(data / "annotations.json")}
    options = {"cache.dir": str(stored.parent / "cache"), "train_dataloader.num_workers": workers}
    weights = []
    for images in (False, True):
        work = tmp_path / f"images-{images}"
        config = make_config(held, teacher, detector("retinanet"), work, "frs", **val)
        if images:
            shutil.rmtree(held / "images")
        stage2(config, **options, **{"cache.images": images, "train_cfg.max_epochs": 2})
        weights.append(torch.load(work / "run/epoch_2.pth", weights_only=True)["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_batch_names_the_original_path(stored: Path) -> None:
    samples: list[Any] = [
        next(iter(prepared_stream(stored, **{"cache.images": images})))["data_samples"] for images in (False, True)
    ]
    assert [s.metainfo for s in samples[0]] == [s.metainfo for s in samples[1]]


def test_a_killed_run_resumes(stored: Path, data: Path, teacher: dict[str, str], tmp_path: Path) -> None:
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs", **{"cache.images": True})
    root = tmp_path / "cache"
    for wanted in ("images/plan.json", "images/shard-00001.tar"):
        child = in_child(stage1, config)
        while not (root / wanted).exists():
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        assert exit_code(child) == -signal.SIGKILL
        if not (root / "images/manifest.json").exists():
            with pytest.raises(CacheError, match=r"images: not complete, because manifest\.json is missing"):
                verify(root)
    stage1(config)
    assert tree(root) == tree(stored.parent / "cache")


def test_images_are_added_to_a_finished_cache(stored: Path, made: dict[str, Path], tmp_path: Path) -> None:
    """No view is computed. The content changes, that of each pass does not, so a student can be resumed."""
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    before = Cache(root)
    content = before.content()
    with pytest.raises(CacheError, match=r"has no image files, which cache\.images=True needs; run stage 1"):
        before.stored_images()
    contents = before.pass_contents()
    assert stage1(made["frs"], **{"cache.dir": str(root), "cache.images": True})["views_computed"] == 0
    assert tree(root) == tree(stored.parent / "cache")
    assert Cache(root).pass_contents() == contents and Cache(root).content() != content


def test_a_pass_with_more_images_adds_theirs(stored: Path, tmp_path: Path) -> None:
    """Also where the config does not ask for images: a cache that has them stays complete."""
    root = change(stored, tmp_path)
    plan = json.loads((root / "images/plan.json").read_text())
    write_json(root / "images/plan.json", {"shards": plan["shards"][:-1]})  # as if the last pass had just come
    stage1(stored, **{"cache.dir": str(root)})
    assert tree(root) == tree(stored.parent / "cache")


def test_damage_is_found_and_repaired(stored: Path, tmp_path: Path) -> None:
    root = change(stored, tmp_path)
    whole, tar = tree(root), root / "images/shard-00001.tar"
    image = json.loads((root / "images/plan.json").read_text())["shards"][1][0]
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    with pytest.raises(CorruptCache, match=rf"shard-00001\.tar: file of image {image}: size or checksum differs"):
        found_in(root, image)
    (root / "images/shard-00002.json").unlink()
    bad = collect_findings(root, False, Silent())["bad"]
    assert ["shard-00001.tar: size or sha256" in line for line in bad] == [True, False] and "00002.json" in bad[1]
    cfg, sections = load_config(str(stored), {"cache.dir": str(root)})
    logged: list[str] = []
    assert len(repair(cfg, sections, logged.append, Silent())) == 2
    assert logged[-1] == "result   byte for byte equal to the original" and tree(root) == whole


def test_a_changed_image_is_refused(stored: Path, teacher: dict[str, str], tmp_path: Path) -> None:
    """The stored files give the pixels that the teacher saw."""
    held = make_dataset(tmp_path / "data")
    config = make_config(held, teacher, detector("retinanet"), tmp_path, "frs", **{"cache.passes": 1})
    stage1(config)
    shutil.copy(held / "images/000.jpg", held / "images/006.jpg")  # another picture of the same size
    with pytest.raises(ReplayMismatch, match=r"image 106, view .: pixels differs .* the image file did"):
        stage1(config, **{"cache.images": True})


def test_a_forged_plan_is_refused(stored: Path, tmp_path: Path) -> None:
    """An image without its file, with all digests right."""
    root = change(stored, tmp_path)
    plan = json.loads((root / "images/plan.json").read_text())["shards"]
    write_json(root / "images/plan.json", {"shards": plan[:2]})
    write_image_manifest(root, Cache(root).plan_digest)
    with pytest.raises(CacheError, match=f"the file of image {plan[2][0]} is not stored"):
        found_in(root, plan[2][0])
    with pytest.raises(CorruptCache, match=rf"lacks the files of 4 images \(first: {min(plan[2])}\)"):
        verify(root)


def test_export_writes_the_file(stored: Path, data: Path, tmp_path: Path) -> None:
    written = export_view(str(stored.parent / "cache"), 105, 0, tmp_path)
    assert tmp_path / "image.jpg" in written
    assert (tmp_path / "image.jpg").read_bytes() == (data / "images/005.jpg").read_bytes()


def test_a_remote_cache_streams_the_files(stored: Path, tmp_path: Path) -> None:
    """Also through the disk cache, where the second epoch requests no file again."""
    batches = {}
    with web_server(stored.parent) as server:
        for name in ("remote", "local"):
            options: dict[str, object] = {"cache.dir": f"{server.address}/cache", "cache.images": True}
            if name == "local":
                options["cache.local"] = str(tmp_path / "disk")
            stream = prepared_stream(stored, **options)
            for epoch in (0, 1):
                server.asked.clear()
                stream.set_epoch(epoch)
                batches[name, epoch] = [batch["inputs"] for batch in stream]
                asked = [path for _, path, _ in server.asked if "/images/shard-" in path and path.endswith(".tar")]
                assert bool(asked) == (name == "remote" or epoch == 0)
    for epoch in (0, 1):
        expected = prepared_stream(stored)
        expected.set_epoch(epoch)
        for found in (batches["remote", epoch], batches["local", epoch]):
            pairs = [pair for own, batch in zip(found, expected, strict=True) for pair in zip(own, batch["inputs"])]
            assert len(pairs) == 12 and all(torch.equal(*pair) for pair in pairs)


def test_reencode_copies_the_files(stored: Path, made: dict[str, Path], tmp_path: Path) -> None:
    """To the byte, and again where it was interrupted."""
    root, like = tmp_path / "new", str(made["frs"].parent / "cache")
    for lost in (None, "images/shard-00001.tar"):
        if lost:
            (root / lost).unlink()
            (root / "images/manifest.json").unlink()
        reencode(str(stored.parent / "cache"), str(root), {}, None, {}, like, 1, lambda _: None, Silent())
        assert {n: s for n, s in tree(root).items() if n.startswith("images/")} == {
            n: s for n, s in tree(stored.parent / "cache").items() if n.startswith("images/")
        }


def test_plan_counts_the_files(stored: Path) -> None:
    """Every file was looked at, so the forecast is exact but for the end of each tar."""
    found = describe(stored.parent / "cache")["stored_images"]
    cfg, sections = load_config(str(stored))
    images, _ = images_and_views(cfg, sections)
    empty = {"bytes": 5, "bytes_low": 4, "bytes_high": 6, "bytes_by_tensor": {}}
    planned = add_image_files(empty, images, 0)
    assert planned["stored_images"] == {"images": 12, "bytes": found["bytes"] - 3 * len(END)}
    assert planned["bytes_by_tensor"]["images"] == [planned["bytes"] - 5] * 3
    assert planned["bytes_high"] - planned["bytes_low"] == 2
