"""Students of a cache: stock mmdet loads them, runs resume, a second student, inherited weights."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import cv2
import pytest
import torch

from pipeline.cache.cache import Cache
from pipeline.config import load_config
from pipeline.errors import ConfigError, StudentError
from pipeline.mmdet_compat.registry import MODELS, Config
from pipeline.stage2.inherit import inherit
from tests.helpers.launch import start_stage
from tests.helpers.stages import stage2, tree


def test_student_is_stock_mmdet(made: dict[str, Path], data: Path) -> None:
    """Checkpoints load with mmdet's init_detector and give the detections of the trained model."""
    from mmdet.apis import inference_detector, init_detector

    config = made["frs"]
    summary = stage2(
        config,
        **{
            "visualizer": {
                "type": "DetLocalVisualizer",
                "name": "stock",
                "vis_backends": [{"type": "TensorboardVisBackend"}],
            }
        },
    )
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


def test_resume(made: dict[str, Path]) -> None:
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
    source = torch.load(teacher["checkpoint"], weights_only=True)["state_dict"]
    matching = [key for key in source if not key.startswith("backbone.")]
    torch.manual_seed(0)
    student = MODELS.build(cfg.model)
    before = {key: value.clone() for key, value in student.backbone.state_dict().items()}
    assert inherit(student, Path(teacher["checkpoint"])) == len(matching) > 10
    assert all(torch.equal(student.state_dict()[key], source[key]) for key in matching)
    assert all(torch.equal(value, before[key]) for key, value in student.backbone.state_dict().items())
    wide = {
        **cfg.model,
        "neck": {**cfg.model.neck, "out_channels": 24},
        "bbox_head": {**cfg.model.bbox_head, "in_channels": 24, "feat_channels": 24},
    }
    assert inherit(MODELS.build(wide), Path(teacher["checkpoint"])) < len(matching)  # only biases of the outputs
    with pytest.raises(StudentError, match="no tensor of"):
        inherit(torch.nn.Linear(3, 3), Path(teacher["checkpoint"]))

    starts = []
    monkeypatch.setattr("pipeline.stage2.inherit.inherit", lambda model, path: starts.append(path) or 1)
    options = {"distill.inherit_from_teacher": True, "work_dir": str(tmp_path), "train_cfg.max_epochs": 1}
    assert stage2(made["frs"], **options)["inherit_from_teacher"] is True
    stage2(made["frs"], resume="auto", **{**options, "train_cfg.max_epochs": 2})  # a resumed student keeps its own
    assert starts == [Path(teacher["checkpoint"])]
    with pytest.raises(ConfigError, match="remove one"):
        stage2(made["frs"], **options, load_from=str(tmp_path / "epoch_1.pth"))


def test_second_student_reuses_the_cache(made: dict[str, Path], tmp_path: Path) -> None:
    """Another depth and FPN width in ten lines based on the first config. No shard changes."""
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


@pytest.mark.slow
def test_a_checkpoint_larger_than_the_disk(made: dict[str, Path], tmp_path: Path) -> None:
    """The disk is full at the second checkpoint: the error is one line, and the first checkpoint is kept."""
    options = (f"work_dir={tmp_path}", "train_cfg.max_epochs=2", "default_hooks.checkpoint.max_keep_ckpts=1")
    process = start_stage(2, made["frs"], *options, "train_cfg.max_epochs=1")
    assert process.wait(timeout=120) == 0
    before = (tmp_path / "epoch_1.pth").read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))

    process = start_stage(2, made["frs"], *options, flags=["--resume"], preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "cannot write a checkpoint" in err and "rerun with --resume" in err
    assert before in [path.read_bytes() for path in tmp_path.glob("*.pth")]
    assert stage2(made["frs"], resume="auto", work_dir=str(tmp_path), **{"train_cfg.max_epochs": 2})["epochs"] == 2
