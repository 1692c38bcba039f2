"""User mistakes end in one clear line and exit code 2, and committed data is kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stage1_cache_teacher
import stage2_distill
from pipeline.cli.command import guarded
from pipeline.mmdet_compat.registry import Config
from tests.helpers.configs import make_config
from tests.helpers.datasets import make_dataset
from tests.helpers.detectors import detector, save_teacher
from tests.helpers.paths import ROOT

SCRIPTS = {1: stage1_cache_teacher, 2: stage2_distill}


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Return a function that runs a stage's entry script and returns its error line."""

    def run(stage: int, config: Path | str, *options: str) -> str:
        argv = ["stage", "--config", str(config)]
        monkeypatch.setattr(sys, "argv", argv + (["--cfg-options", *options] if options else []))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            guarded(SCRIPTS[stage].main)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert stopped.value.code == 2 and len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def config(data: Path, teacher: dict, tmp_path: Path) -> Path:
    return make_config(data, teacher, detector("retinanet"), tmp_path)


def test_a_real_process(tmp_path: Path) -> None:
    verbs = ("plan", "repair", "verify C", "report C -o page.html", "reencode A B", "stage1", "stage2")
    commands = [["-m", "pipeline", *verb.split()] for verb in verbs]
    for command in (["stage1_cache_teacher.py"], ["stage2_distill.py"], *commands):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *command, "--config", tmp_path / "no.py"],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        imported = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
        assert not any(line.endswith((" torch", " mmengine")) for line in imported)
        assert done.returncode == 2
        output = [line for line in done.stderr.splitlines() if line not in imported]
        assert output == [f"error: {tmp_path / 'no.py'}: no such config file"]


def test_config(fails, config: Path, tmp_path: Path) -> None:
    assert "no such config file" in fails(1, tmp_path / "missing.py")
    broken = tmp_path / "broken.py"
    broken.write_text("model = dict(\n")
    assert "cannot be read as a config" in fails(1, broken)
    assert fails(1, config, "teacher.name").endswith("--cfg-options: expected key=value, found 'teacher.name'")
    assert len(fails(1, config, "qqq=1")) < 100
    assert "did you mean 'checkpoint'" in fails(1, config, "teacher.chekpoint=x")
    assert "did you mean 'cache'" in fails(1, config, "cach.dir=x")
    assert "cache.codec.type" in fails(1, config, "cache.codec.type=zip")
    assert "views.check" in fails(2, config, "views.check=never")
    assert "expected at least 1" in fails(1, config, "cache.batch_size=0")
    text = config.read_text()
    typo = tmp_path / "typo.py"
    typo.write_text(text.replace("\ndistill = ", "\ndistil = "))
    assert "did you mean 'distill'" in fails(2, typo)
    for stage in (1, 2):
        assert "section 'model' is missing" in fails(stage, _without(config, tmp_path, "model"))


def _without(config: Path, folder: Path, key: str) -> Path:
    cfg = Config.fromfile(config)
    cfg.pop(key)
    cfg.dump(folder / "without.py")
    return folder / "without.py"


def test_annotations(fails, data: Path, teacher: dict, tmp_path: Path) -> None:
    mine = make_dataset(tmp_path / "data", images=4)
    config = make_config(mine, teacher, detector("retinanet"), tmp_path / "work")
    path = mine / "annotations.json"
    content = json.loads(path.read_text())
    path.unlink()
    assert "annotation file not found" in fails(1, config)
    path.write_text("{")
    assert "not a JSON file" in fails(1, config)
    path.write_text(json.dumps({"info": 1}))
    assert "not a COCO annotation file" in fails(1, config)
    path.write_text(json.dumps({**content, "images": content["images"] + content["images"][:1]}))
    assert "image id 100 occurs more than once" in fails(1, config)
    path.write_text(json.dumps({**content, "categories": content["categories"][:1]}))
    assert "class 'car'" in fails(1, config)
    path.write_text(json.dumps({**content, "annotations": []}))
    assert "no image is left" in fails(1, config, "train_dataloader.dataset.filter_cfg.filter_empty_gt=True")


def test_images(fails, teacher: dict, tmp_path: Path) -> None:
    mine = make_dataset(tmp_path / "data", images=6)
    config = make_config(mine, teacher, detector("retinanet"), tmp_path / "work")
    picture = mine / "images" / "004.jpg"
    raw = picture.read_bytes()
    picture.unlink()
    line = fails(1, config)
    assert "image 104" in line and line.count("004.jpg") == 1
    picture.write_bytes(b"GIF89a nonsense")
    assert "image 104" in fails(1, config)
    shutil.copy(mine / "images" / "001.jpg", picture)
    assert "the annotation file says 64x100, the image is 64x96" in fails(1, config)
    picture.write_bytes(raw)


def test_teacher(fails, config: Path, data: Path, tmp_path: Path) -> None:
    assert "not in mmdet's zoo; did you mean 'retinanet_r101_fpn_1x_coco'" in fails(
        1, config, "teacher.name=retinanet_r101_fpn_1x_cocoo", "teacher.config=None"
    )
    assert "either name=" in fails(1, config, "teacher.name=retinanet_r101_fpn_1x_coco")
    assert "no.pth: teacher.checkpoint not found" in fails(1, config, f"teacher.checkpoint={tmp_path / 'no.pth'}")
    deeper = save_teacher(tmp_path / "deeper", detector("retinanet", depth=34))
    line = fails(1, config, f"teacher.checkpoint={deeper['checkpoint']}")
    assert "does not fit" in line and "unexpected" in line
    missing = torch.load(deeper["checkpoint"], weights_only=True)
    missing["state_dict"].pop("neck.fpn_convs.0.conv.bias")
    torch.save(missing, tmp_path / "missing.pth")
    line = fails(1, config, f"teacher.config={deeper['config']}", f"teacher.checkpoint={tmp_path / 'missing.pth'}")
    assert "1 keys missing (first: neck.fpn_convs.0.conv.bias)" in line
    (tmp_path / "text.pth").write_text("hello")
    assert "text.pth" in fails(1, config, f"teacher.checkpoint={tmp_path / 'text.pth'}")
    assert "teacher.min_map asks for 0.900" in fails(1, config, "teacher.min_map=0.9")
    assert not (tmp_path / "cache" / "pass-0").exists()


def test_hostile_checkpoint(fails, config: Path, tmp_path: Path) -> None:
    """A checkpoint that contains code is rejected, and its code does not run."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": {}, "meta": Bomb()}, tmp_path / "bomb.pth", pickle_module=pickle)
    assert "bomb.pth" in fails(1, config, f"teacher.checkpoint={tmp_path / 'bomb.pth'}")
    assert not (tmp_path / "ran").exists()


def test_transforms(fails, config: Path, tmp_path: Path) -> None:
    for name in ("Mosaic", "MixUp"):
        cfg = Config.fromfile(config)
        cfg.train_dataloader.dataset.pipeline.insert(2, {"type": name})
        cfg.dump(tmp_path / "mixed.py")
        assert f"transform {name}: mixes images" in fails(1, tmp_path / "mixed.py")
    cfg = Config.fromfile(config)
    cfg.train_dataloader.dataset = {"type": "ClassBalancedDataset", "dataset": cfg.train_dataloader.dataset}
    cfg.dump(tmp_path / "wrapped.py")
    assert "wrapper ClassBalancedDataset" in fails(1, tmp_path / "wrapped.py")


def test_no_cache(fails, config: Path) -> None:
    assert "no cache here" in fails(2, config)


def test_another_cache(fails, made: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Both stages reject a cache of another teacher or data set. The error names the field and both values."""
    root = made["frs"].parent / "cache"
    before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    there = f"cache.dir={root}"
    other = save_teacher(tmp_path / "other", detector("retinanet", depth=18), seed=9)
    config = make_config(data, other, detector("retinanet"), tmp_path)
    for stage in (1, 2):
        line = fails(stage, config, there)
        assert "sha256" in line and "the cache has '" in line and "the config wants '" in line
    deeper = save_teacher(tmp_path / "deeper", detector("retinanet", depth=34))
    config = make_config(data, deeper, detector("retinanet"), tmp_path)
    assert "teacher.model.backbone.depth: the cache has 18, the config wants 34" in fails(2, config, there)
    mine = make_dataset(tmp_path / "data", images=5, seed=3)
    config = make_config(mine, Config.fromfile(made["frs"]).teacher.to_dict(), detector("retinanet"), tmp_path)
    for stage in (1, 2):
        assert "data.annotations_sha256: the cache has '" in fails(stage, config, there)
    assert "views.seed: the cache has 520, the config wants 521" in fails(2, made["frs"], "views.seed=521")
    assert "randomness.seed: cannot be built" in fails(2, made["frs"], "randomness.seed=-1")
    assert before == sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    assert "teacher.min_map asks for 0.900" in fails(1, made["frs"], "teacher.min_map=0.9")


def test_student(fails, made: dict[str, Path], tmp_path: Path) -> None:
    assert "student predicts 7 classes" in fails(2, made["frs"], "model.bbox_head.num_classes=7")
    assert "4 FPN levels, the teacher's outputs have 5" in fails(
        2, made["frs"], "model.neck.num_outs=4", "model.bbox_head.anchor_generator.strides=[8,16,32,64]"
    )
    assert "score channels" in fails(2, made["frs"], "model.bbox_head.anchor_generator.scales_per_octave=1")
    assert "cannot be built" in fails(2, made["frs"], "model.backbone.depht=50")
    assert "cannot be built" in fails(2, made["frs"], "optim_wrapper.optimizer.type=SGDD")
    cfg = Config.fromfile(made["frs"])
    cfg.model.data_preprocessor.batch_augments = [{"type": "BatchSyncRandomResize", "random_size_range": (64, 96)}]
    cfg.dump(tmp_path / "augments.py")
    assert "batch_augments" in fails(2, tmp_path / "augments.py")


def test_samplers_are_not_ignored(fails, made: dict[str, Path], tmp_path: Path) -> None:
    """mmdet's stock samplers are accepted, because the stream does the same. Other samplers raise an error."""
    cfg = Config.fromfile(made["frs"])
    cfg.train_dataloader.sampler = {"type": "ClassAwareSampler"}
    cfg.dump(tmp_path / "sampler.py")
    assert "train_dataloader.sampler: ClassAwareSampler" in fails(2, tmp_path / "sampler.py")
    cfg.train_dataloader.sampler = {"type": "DefaultSampler", "shuffle": True}
    cfg.train_dataloader.drop_last = True
    cfg.dump(tmp_path / "drop.py")
    assert "train_dataloader.drop_last" in fails(2, tmp_path / "drop.py")
    cfg.val_evaluator = [{"type": "VOCMetric"}]
    cfg.cache.dir = str(tmp_path / "new")
    cfg.dump(tmp_path / "voc.py")
    assert "expected a CocoMetric" in fails(1, tmp_path / "voc.py")


def test_a_changed_image_stops_training(fails, teacher: dict, tmp_path: Path) -> None:
    from tests.helpers.stages import stage1

    mine = make_dataset(tmp_path / "data", images=6)
    config = make_config(mine, teacher, detector("retinanet"), tmp_path / "work")
    stage1(config)
    shutil.copy(mine / "images" / "000.jpg", tmp_path / "kept.jpg")
    import cv2

    picture = cv2.imread(str(mine / "images" / "000.jpg"))
    picture[:8] = 255 - picture[:8]
    cv2.imwrite(str(mine / "images" / "000.jpg"), picture)
    line = fails(2, config)
    assert "image 100" in line and "pixels differs from the teacher's view" in line


def test_a_corrupt_shard_stops_training(fails, made: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "cache"
    shutil.copytree(made["frs"].parent / "cache", root)
    shard = root / "pass-0" / "shard-00001.tar"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    for workers in (0, 1):
        line = fails(2, made["frs"], f"cache.dir={root}", f"train_dataloader.num_workers={workers}")
        assert "shard-00001.tar" in line and "repair --config C` recomputes only this shard" in line


def test_an_unfinished_cache(fails, made: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "cache"
    shutil.copytree(made["frs"].parent / "cache", root)
    for manifest in root.glob("pass-*/manifest.json"):
        manifest.unlink()
    assert "pass 0 is not complete (complete: 0 of 2)" in fails(2, made["frs"], f"cache.dir={root}")


def test_values_of_any_type(fails, config: Path, made: dict[str, Path], tmp_path: Path) -> None:
    assert "train_dataloader: expected a dict" in fails(1, config, "train_dataloader=5")
    assert "finite" in fails(1, config, "distill.feature_weight=nan")
    assert "cache.codec.quality" in fails(1, config, "cache.codec.quality=7")
    assert "cache.passes: expected at most 2, the number of views of an image, found 3" in fails(
        1, config, "cache.passes=3"
    )
    assert "pad_size_divisor" in fails(2, made["frs"], "model.data_preprocessor.pad_size_divisor=0")
    assert "do not fit together" in fails(2, made["frs"], "model.neck.out_channels=24")
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert str(occupied) in fails(1, config, f"cache.dir={occupied}")
    assert str(occupied) in fails(2, made["frs"], f"work_dir={occupied}")
    (tmp_path / "empty.pth").write_bytes(b"")
    assert "empty.pth: cannot be read" in fails(1, config, f"teacher.checkpoint={tmp_path / 'empty.pth'}")
    (tmp_path / "assert.py").write_text("assert False")
    assert "assert.py: cannot be read" in fails(1, config, f"teacher.config={tmp_path / 'assert.py'}")
    (tmp_path / "neck.py").write_text("model = dict(type='FPN')")
    assert "expected a model= with a backbone" in fails(1, config, f"teacher.config={tmp_path / 'neck.py'}")


def test_starting_weights(fails, made: dict[str, Path], teacher: dict, tmp_path: Path) -> None:
    """Training does not start unless --resume and Pretrained files are plain data and match the student."""
    torch.save({"state_dict": {"foreign.weight": torch.zeros(1)}}, tmp_path / "foreign.pth")
    expected = {"none.pth": "none.pth not found", "foreign.pth": "no weight of this backbone"}
    for name, message in expected.items():
        cfg = Config.fromfile(made["frs"])
        cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / name)}
        cfg.dump(tmp_path / "pretrained.py")
        assert message in fails(2, tmp_path / "pretrained.py")
    ran = tmp_path / "ran"
    bomb = type("Bomb", (), {"__reduce__": lambda self: (ran.touch, ())})
    sys.modules[__name__].Bomb = bomb
    torch.save({"state_dict": {}, "optimizer": bomb(), "frs": {}, "meta": {"epoch": 1}}, tmp_path / "bomb.pth")
    assert "bomb.pth: not loaded" in fails(2, made["frs"], "resume=True", f"load_from={tmp_path / 'bomb.pth'}")
    assert not ran.exists()
    for path in (teacher["checkpoint"], tmp_path / "foreign.pth"):
        assert "not a checkpoint of stage 2" in fails(2, made["frs"], "resume=True", f"load_from={path}")
    cfg = Config.fromfile(made["frs"])
    cfg.custom_hooks = [{"type": "PipelineSwitchHook", "switch_epoch": 1, "switch_pipeline": []}]
    cfg.dump(tmp_path / "switch.py")
    assert "hook PipelineSwitchHook: " in fails(2, tmp_path / "switch.py")


def test_an_incomplete_cache_is_named(fails, made: dict[str, Path], tmp_path: Path) -> None:
    """With one of two passes, every image would silently have only one view."""
    from pipeline.errors import CacheError
    from pipeline.integrity.verify import verify

    root = tmp_path / "cache"
    shutil.copytree(made["frs"].parent / "cache", root)
    (root / "pass-1" / "manifest.json").unlink()
    assert "pass 1 is not complete (complete: 1 of 2)" in fails(2, made["frs"], f"cache.dir={root}")
    with pytest.raises(CacheError, match="pass-1"):
        verify(root)
    there = f"cache.dir={made['frs'].parent / 'cache'}"
    for stage in (1, 2):
        assert "planned for 12 images" in fails(stage, made["frs"], there, "train_dataloader.dataset.indices=5")


def test_mmengine_never_unpickles(tmp_path: Path) -> None:
    """mmengine's loader falls back to full unpickling. It is replaced for every local file."""
    from mmengine.runner.checkpoint import CheckpointLoader

    from pipeline.errors import TeacherError
    from pipeline.stage2.resume import guard_loading

    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": {}, "meta": {"x": Bomb()}}, tmp_path / "bomb.pth")
    torch.save({"state_dict": {}, "meta": {"config": "raise SystemExit", "epoch": 1}}, tmp_path / "config.pth")
    guard_loading()
    with pytest.raises(TeacherError, match=r"bomb\.pth"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "bomb.pth"))
    assert not (tmp_path / "ran").exists()
    assert CheckpointLoader.load_checkpoint(str(tmp_path / "config.pth"))["meta"] == {"epoch": 1}


def test_a_number_that_no_file_can_hold(fails, data: Path, teacher: dict[str, str], tmp_path: Path) -> None:
    """plan.json could be written, but not read: the error came after the calibration."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path)
    for key, number in (("views.seed", 2**63), ("views.tolerance", 10**30)):
        assert fails(1, config, f"{key}={number}").endswith(
            f"{key}: expected a whole number of at most 64 bits, found {number}"
        )
    assert not (tmp_path / "cache").exists()
