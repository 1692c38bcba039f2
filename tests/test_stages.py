"""Both entry scripts on real files: kill and resume, students that stock mmdet loads, a second student, growth."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector

from pipeline.cache.cache import Cache
from pipeline.cli.command import one_line
from pipeline.config import load_config
from pipeline.errors import ConfigError, StudentError
from pipeline.mmdet_compat.registry import MODELS, Config
from pipeline.stage2.inherit import inherit
from pipeline.stage2.settings import apply_flags
from pipeline.stage2.train import train_student
from tests.conftest import detector, make_config, make_dataset, stage1

ROOT = Path(__file__).resolve().parents[1]


def tree(root: Path) -> dict[str, str]:
    """sha256 of every file of a cache that has to be reproducible."""
    files = (p for p in root.rglob("*") if p.is_file() and p.name not in (".lock", "summary.json"))
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def stage2(config: Path, resume: str | None = None, **options: object) -> dict:
    cfg, sections = load_config(str(config), options)
    apply_flags(cfg, str(config), None, resume, False, False, "none")
    return train_student(cfg, sections)


def test_kill_and_start_again(made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path) -> None:
    """kill -9 in the middle, twice; then the same command gives the very bytes of an undisturbed run."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    root = tmp_path / "cache"
    command = [sys.executable, str(ROOT / "stage1_cache_teacher.py"), "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for wanted in ("pass-0/shard-00000.tar", "pass-0/shard-00001.tar"):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (root / wanted).exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (root / "pass-1/manifest.json").exists()
    assert (root / "pass-0/shard-00000.tar").exists()
    summary = stage1(config)
    assert summary["views_computed"] < summary["views"] == 24
    assert tree(root) == tree(made["frs"].parent / "cache")
    assert stage1(config)["views_computed"] == 0


def test_a_deleted_shard_is_repaired_alone(made: dict[str, Path], tmp_path: Path) -> None:
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


def test_student_is_stock_mmdet(made: dict[str, Path], data: Path) -> None:
    """Checkpoints load through mmdet's own init_detector and detect just as the trained model did."""
    config = made["frs"]
    summary = stage2(config, **{"visualizer": {"type": "DetLocalVisualizer", "name": "stock", "vis_backends": [
        {"type": "TensorboardVisBackend"}]}})  # fmt: skip
    run = config.parent / "run"
    assert json.loads((run / "summary.json").read_text()) == summary
    assert list(run.rglob("events.out.tfevents*"))
    checkpoint = torch.load(run / "epoch_1.pth", weights_only=True)
    assert checkpoint["frs"]["content"] == summary["content"] == Cache(config.parent / "cache").content()
    assert checkpoint["frs"]["adapters"].keys() == {f"{n}.{k}" for n in range(5) for k in ("weight", "bias")}
    model = init_detector(str(config), str(run / "epoch_1.pth"), device="cpu")
    own = model.state_dict()
    assert own.keys() == checkpoint["state_dict"].keys()
    assert all(torch.equal(own[k], v) for k, v in checkpoint["state_dict"].items())
    model.test_cfg.score_thr = 0.0
    picture = cv2.imread(str(data / "images" / "000.jpg"))
    found = inference_detector(model, picture).pred_instances
    cfg = Config.fromfile(config)
    cfg.model.test_cfg.score_thr = 0.0

    again = MODELS.build(cfg.model).eval()
    again.load_state_dict(checkpoint["state_dict"])
    again.cfg, again.dataset_meta = cfg, model.dataset_meta
    expected = inference_detector(again, picture).pred_instances
    assert len(found.scores) > 0 and torch.equal(found.scores, expected.scores)
    assert torch.equal(found.bboxes, expected.bboxes)


def test_resume_goes_on(made: dict[str, Path]) -> None:
    config = made["lossless"]
    first = stage2(config)
    again = stage2(config, resume="auto", **{"train_cfg.max_epochs": 2})
    assert again["epochs"] == 2 and again["images"] == first["images"]
    done = stage2(config, resume="auto", **{"train_cfg.max_epochs": 2})
    assert done["images"] == 0 and done["mAP"] == again["mAP"]


def test_a_student_may_inherit_neck_and_head(
    made: dict[str, Path], teacher: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, _ = load_config(str(made["frs"]))
    taught = torch.load(teacher["checkpoint"], weights_only=True)["state_dict"]
    fitting = [key for key in taught if not key.startswith("backbone.")]
    torch.manual_seed(0)
    student = MODELS.build(cfg.model)
    before = {key: value.clone() for key, value in student.backbone.state_dict().items()}
    assert inherit(student, Path(teacher["checkpoint"])) == len(fitting) > 10
    assert all(torch.equal(student.state_dict()[key], taught[key]) for key in fitting)
    assert all(torch.equal(value, before[key]) for key, value in student.backbone.state_dict().items())
    wide = {**cfg.model, "neck": {**cfg.model.neck, "out_channels": 24},
            "bbox_head": {**cfg.model.bbox_head, "in_channels": 24, "feat_channels": 24}}  # fmt: skip
    assert inherit(MODELS.build(wide), Path(teacher["checkpoint"])) < len(fitting)  # biases of the outputs alone
    with pytest.raises(StudentError, match="no tensor of"):
        inherit(torch.nn.Linear(3, 3), Path(teacher["checkpoint"]))

    starts = []
    monkeypatch.setattr("pipeline.stage2.inherit.inherit", lambda model, path: starts.append(path) or 1)
    options = {"distill.inherit_from_teacher": True, "work_dir": str(tmp_path), "train_cfg.max_epochs": 1}
    assert stage2(made["frs"], **options)["inherit_from_teacher"] is True
    stage2(made["frs"], resume="auto", **{**options, "train_cfg.max_epochs": 2})  # a resumed student keeps its own
    assert starts == [Path(teacher["checkpoint"])]
    with pytest.raises(ConfigError, match="drop one"):
        stage2(made["frs"], **options, load_from=str(tmp_path / "epoch_1.pth"))


def test_second_student_reuses_the_cache(made: dict[str, Path], tmp_path: Path) -> None:
    """Another depth and FPN width, ten lines on top of the first config; no shard is touched."""
    before = tree(made["frs"].parent / "cache")
    config = tmp_path / "second.py"
    config.write_text(
        f"_base_ = [{str(made['frs'])!r}]\n"
        "model = dict(\n"
        "    backbone=dict(depth=34),\n"
        "    neck=dict(out_channels=24),\n"
        "    bbox_head=dict(in_channels=24, feat_channels=24))\n"
        f"work_dir = {str(tmp_path / 'run')!r}\n"
    )
    summary = stage2(config)
    checkpoint = torch.load(tmp_path / "run" / "epoch_1.pth", weights_only=True)
    assert checkpoint["frs"]["adapters"]["0.weight"].shape == (16, 24, 3, 3)
    assert summary["content"] == Cache(made["frs"].parent / "cache").content()
    assert tree(made["frs"].parent / "cache") == before


def test_loader_workers_change_nothing(made: dict[str, Path]) -> None:
    from pipeline.data.stream import Stream, stream_loader
    from pipeline.stage2.teacher_data import prepare_teacher_data

    cfg, sections = load_config(str(made["frs"]))
    teacher_data = prepare_teacher_data(cfg, sections)
    runs = []
    for workers in (0, 2):
        stream = Stream(teacher_data.stream, 4, seed=1)
        epochs = []
        for epoch in range(2):
            stream.set_epoch(epoch)
            epochs.append([[s.img_id for s in b["data_samples"]] for b in stream_loader(stream, workers)])
        runs.append(epochs)
    assert runs[0] == runs[1] and runs[0][0] != runs[0][1]
    assert sorted(i for batch in runs[0][0] for i in batch) == list(range(100, 112))


def test_a_spawned_worker_opens_its_own_shards(made: dict[str, Path]) -> None:
    cache = Cache(made["frs"].parent / "cache")
    before = cache.shard(0, 0).read(0)
    travelled = pickle.dumps(cache)
    cache.shard(0, 0).close()
    after = pickle.loads(travelled).shard(0, 0).read(0)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_quarantine(data: Path, teacher: dict, tmp_path: Path) -> None:
    """A broken image stops stage 1 by name; with cache.quarantine it is left out, listed, and stage 2 runs."""
    whole, data = data, make_dataset(tmp_path / "data")
    (data / "images" / "003.jpg").write_bytes(b"not a picture")
    val = {"val_dataloader.dataset.data_root": str(whole), "val_evaluator.ann_file": str(whole / "annotations.json")}
    config = make_config(data, teacher, detector("retinanet"), tmp_path / "work", "frs", **val)
    from pipeline.errors import DataError

    with pytest.raises(DataError, match=r"image 103 .*003\.jpg"):
        stage1(config)
    summary = stage1(config, **{"cache.quarantine": True})
    assert (summary["views"], summary["quarantined"]) == (22, 2)
    listed = json.loads((tmp_path / "work/cache/pass-0/quarantine.json").read_text())
    assert listed["images"][0][0] == 103 and "003.jpg" in listed["images"][0][1]
    assert stage2(config)["images"] == 11


def test_info(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from pipeline.cli.main import main

    root = str(made["frs"].parent / "cache")
    monkeypatch.setattr(sys, "argv", ["pipeline", "info", root, "--json"])
    main()
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["views"]) == (12, 24)
    on_disk = sum(p.stat().st_size for p in Path(root).glob("pass-*/*.tar"))
    assert found["bytes"] == on_disk == sum(found["bytes_by_tensor"].values())
    assert {"features", "scores", "frs", "record", "thumbnail", "overhead"} == found["bytes_by_tensor"].keys()
    assert found["codec"]["type"] == "frs" and len(found["content"]) == len(found["recipe"]) == 64
    for verb in ("info", "verify"):
        monkeypatch.setattr(sys, "argv", ["pipeline", verb, root])
        main()
        assert "MB" in capsys.readouterr().out


def test_without_libgl() -> None:
    """Bare machines have no libGL: of the two opencv wheels only the headless one may be installed."""
    from importlib.metadata import PackageNotFoundError, version

    assert version("opencv-python-headless")
    with pytest.raises(PackageNotFoundError):
        version("opencv-python")
    assert np.asarray(cv2.resize(np.zeros((4, 4, 3), np.uint8), (2, 2))).shape == (2, 2, 3)
    linked = Path("/proc/self/maps").read_text()
    assert "libGL.so" not in linked


def test_one_line_of_a_workers_error() -> None:
    from pipeline.errors import CorruptCache

    text = "Caught CorruptCache in worker\nTraceback\n  x\npipeline.errors.CorruptCache: shard 3 is broken"
    wrapped = CorruptCache(text)
    assert one_line(wrapped) == "shard 3 is broken"
