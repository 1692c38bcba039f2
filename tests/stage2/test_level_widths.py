"""Detectors whose levels have different widths (YOLOv3), and detectors without a neck: both stages, live and cached."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import pytest
import torch

from pipeline.config import load_config
from pipeline.errors import ConfigError, StudentError
from pipeline.losses.registry import feature_losses
from pipeline.mmdet_compat.registry import MODELS, Config
from pipeline.sections import DistillSection
from pipeline.stage2.compatibility import check_student
from pipeline.stage2.distiller import new_adapters
from pipeline.stage2.settings import require_trainable
from pipeline.stage2.teacher_data import prepare_teacher_data
from pipeline.stage2.train import train_student
from pipeline.teacher.heads import class_head
from tests.helpers.configs import make_config
from tests.helpers.datasets import CLASSES
from tests.helpers.detectors import detector, save_teacher
from tests.helpers.distillation import distiller_and_batch, step
from tests.helpers.stages import stage1
from tests.helpers.verbs import verb_runner

ZOO = Path(mmdet.__file__).parent / ".mim" / "configs"
WIDTHS = (32, 16, 8)


def thin_yolov3() -> dict[str, Any]:
    """YOLOv3's neck and head on a thin ResNet. Its levels go from coarse to fine, with WIDTHS channels."""
    model = Config.fromfile(ZOO / "yolo" / "yolov3_d53_8xb8-320-273e_coco.py").model
    thin = detector("retinanet")
    model.update(backbone={**thin["backbone"], "out_indices": (1, 2, 3)}, data_preprocessor=thin["data_preprocessor"])
    model.neck.update(in_channels=[64, 32, 16], out_channels=list(WIDTHS))
    model.bbox_head.update(num_classes=len(CLASSES), in_channels=list(WIDTHS), out_channels=[32, 16, 8])
    return model.to_dict()


def without_neck() -> dict[str, Any]:
    """A RetinaNet on the last level of its backbone."""
    model = copy.deepcopy(detector("retinanet"))
    model["backbone"]["out_indices"] = (3,)
    model["bbox_head"].update(in_channels=64)
    model["bbox_head"]["anchor_generator"]["strides"] = [32]
    del model["neck"]
    return {**model, "type": "SingleStageDetector"}


MADE = {"yolov3": thin_yolov3, "no neck": without_neck}


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in gradients])


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("loss", ["frs", "mgd"])
def test_live_equals_cached(name: str, loss: str, lossless: dict[str, Path]) -> None:
    (cached, of_cached), (live, of_live) = (
        step(*distiller_and_batch(lossless[name], s, loss=loss)) for s in ("cache", "live")
    )
    assert set(cached) == {f"loss_{loss}_feature", "loss_frs_score"}
    for key, value in cached.items():
        assert 0 < value.item() == pytest.approx(live[key].item(), rel=1e-5)
    assert torch.linalg.norm(flat(of_cached) - flat(of_live)) <= 1e-5 * torch.linalg.norm(flat(of_live))


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Path]:
    """A config with a finished lossless cache, by detector."""
    found = {}
    for name, make in MADE.items():
        work = tmp_path_factory.mktemp("lossless")
        found[name] = make_config(data, save_teacher(work / "teacher", make()), make(), work, "lossless")
        stage1(found[name])
    return found


@pytest.mark.parametrize("name", [pytest.param("yolov3", marks=pytest.mark.slow), "no neck"])
def test_both_stages_with_the_lossy_codec(name: str, data: Path, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", MADE[name]())
    config = make_config(data, teacher, MADE[name](), tmp_path, "frs", **{"cache.passes": 1})
    made = stage1(config)
    summary = train_student(*load_config(str(config)))
    assert summary["content"] == made["content"] and summary["iterations"] >= 3


@pytest.mark.slow
def test_every_verb_reads_such_a_cache(
    lossless: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run, config = verb_runner(monkeypatch, capsys), lossless["yolov3"]
    cache, lossy = config.parent / "cache", tmp_path / "lossy"
    for argv in (
        ("info", cache),
        ("verify", cache, "--deep", "--config", config),
        ("export", cache, "--image-id", "100", "--view", "0", "--out", tmp_path / "view"),
        ("reencode", cache, lossy, "--config", config, "--quality", "small"),
        ("verify", lossy, "--deep"),
        ("report", lossy, "--out", tmp_path / "report.html"),
    ):
        code, _, err = run(*argv)
        assert code == 0, (argv, err)
    assert [np.load(tmp_path / "view" / f"features_{n}.npy").shape[0] for n in range(3)] == list(WIDTHS)


def test_each_level_has_its_own_adapter(lossless: dict[str, Path]) -> None:
    model, _ = distiller_and_batch(lossless["yolov3"], "cache")
    assert [(a.in_channels, a.out_channels) for a in model.adapters] == [(w, w) for w in WIDTHS]
    student = MODELS.build(Config(detector("retinanet")))
    section = DistillSection(1.0, 0.0, feature_loss="pkd", student_levels=[2, 1, 0])
    layout = prepare_teacher_data(*load_config(str(lossless["yolov3"]))).layout
    assert check_student(student, layout, section) == (16, 16, 16) and layout.channels == WIDTHS
    found = new_adapters(feature_losses()["pkd"], (16, 16, 16), layout.channels)
    assert [type(a).__name__ for a in found] == ["Conv2d", "Identity", "Conv2d"]


def test_features_that_differ_in_training_are_refused(lossless: dict[str, Path]) -> None:
    """TridentNet gives its head three times as many samples when it trains."""
    model, batch = distiller_and_batch(lossless["no neck"], "cache")
    ready = model.data_preprocessor(batch, True)
    target, features = model._source[0].output(ready["teacher"]), list(model.student.extract_feat(ready["inputs"]))
    assert len(model._adapt(features, target)) == 1
    with pytest.raises(StudentError, match=r"3 times as many samples.* when it trains"):
        model._adapt([torch.cat([x, x, x]) for x in features], target)


def test_corners_are_no_class_scores() -> None:
    model = MODELS.build(Config(without_neck()))
    head = {"type": "CornerHead", "num_classes": 3, "in_channels": 64, "num_feat_levels": 1}
    model.bbox_head = MODELS.build(Config(head))
    with pytest.raises(ConfigError, match="dense bbox_head or rpn_head, found CornerHead, which scores the corners"):
        class_head(model)
    model.bbox_head = None
    with pytest.raises(ConfigError, match="dense bbox_head or rpn_head, found none"):
        class_head(model)


def test_detectors_that_need_proposals_are_refused() -> None:
    fast = Config.fromfile(ZOO / "fast_rcnn" / "fast-rcnn_r50_fpn_1x_coco.py").model
    with pytest.raises(ConfigError, match=r"FastRCNN trains on proposals from a file.*use a detector with an rpn_head"):
        require_trainable(fast)
    require_trainable(Config(detector("faster-rcnn")))
