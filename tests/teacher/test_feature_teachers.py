"""Teachers without dense class scores: DETR, a backbone alone, a ViT of timm. Both stages, and live equals cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch

from pipeline.config import load_config
from pipeline.errors import ConfigError, StudentError, TeacherError
from pipeline.mmdet_compat.registry import MODELS, Config
from pipeline.sections import TeacherSection
from pipeline.stage2.compatibility import TeacherLayout, check_student
from pipeline.stage2.train import train_student
from pipeline.teacher.backbones import create
from pipeline.teacher.heads import output_shapes
from pipeline.teacher.model import Teacher
from pipeline.teacher.zoo import find_teacher
from tests.helpers.configs import make_config
from tests.helpers.datasets import CLASSES
from tests.helpers.detectors import detector, save_teacher
from tests.helpers.distillation import distiller_and_batch, step
from tests.helpers.paths import ROOT
from tests.helpers.stages import stage1
from tests.helpers.timm_models import import_timm

FEATURES_ONLY = {
    "cache.passes": 1,
    "cache.codec.scores": False,
    "distill.score_weight": 0.0,
    "distill.feature_loss": "pkd",
}


SMALL_VIT = {"type": "TimmBackbone", "name": "vit_small_patch14_dinov2"}


def thin_detr() -> dict[str, Any]:
    path = Path(mmdet.__file__).parent / ".mim" / "configs" / "detr" / "detr_r50_8xb2-150e_coco.py"
    model = Config.fromfile(path).model
    thin = detector("retinanet")
    model.backbone = {**thin["backbone"], "out_indices": (3,)}
    model.neck.update(in_channels=[64], out_channels=16, norm_cfg=None)
    layer = {
        "self_attn_cfg": {"embed_dims": 16, "num_heads": 2},
        "ffn_cfg": {"embed_dims": 16, "feedforward_channels": 32},
    }
    model.encoder.update(num_layers=1, layer_cfg=layer)
    cross = {**layer, "cross_attn_cfg": {"embed_dims": 16, "num_heads": 2}}
    model.decoder.update(num_layers=1, layer_cfg=cross)
    model.positional_encoding.num_feats = 8
    model.bbox_head.update(num_classes=len(CLASSES), embed_dims=16)
    model.data_preprocessor = thin["data_preprocessor"]
    return model.to_dict()


def config_of(data: Path, work: Path, teacher: dict[str, Any], codec: str = "lossless", **changes: Any) -> Path:
    options = {**FEATURES_ONLY, **changes}
    options |= {} if codec == "lossless" else {"cache.codec.profile": "universal"}
    config = make_config(data, teacher, detector("retinanet"), work, codec, **options)
    return config


@pytest.fixture
def detr(tmp_path: Path) -> dict[str, str]:
    return save_teacher(tmp_path / "teacher", thin_detr())


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in gradients])


def check_live_equals_cached(config: Path) -> None:
    (cached, of_cached), (live, of_live) = (
        step(*distiller_and_batch(config, s, loss="pkd")) for s in ("cache", "live")
    )
    assert list(cached) == ["loss_pkd_feature"] and cached["loss_pkd_feature"] > 0
    assert cached["loss_pkd_feature"].item() == pytest.approx(live["loss_pkd_feature"].item(), rel=1e-5)
    assert torch.linalg.norm(flat(of_cached) - flat(of_live)) <= 1e-5 * torch.linalg.norm(flat(of_live))


def test_a_detr_teacher(data: Path, tmp_path: Path, detr: dict[str, str]) -> None:
    """Its one level, stride 32, is paired with P5 of the student."""
    config = config_of(data, tmp_path, detr, **{"distill.student_levels": [2]})
    assert stage1(config)["views"] == 12
    check_live_equals_cached(config)


def test_both_stages_with_the_lossy_codec(data: Path, tmp_path: Path, detr: dict[str, str]) -> None:
    config = config_of(data, tmp_path, detr, "frs", **{"distill.student_levels": [2]})
    stage1(config)
    summary = train_student(*load_config(str(config)))
    assert summary["iterations"] >= 3 and summary["feature_loss"] == "pkd"
    with pytest.raises(ConfigError, match=r"weights features by the richness map.*one of cwd, mgd, pkd"):
        train_student(*load_config(str(config), {"distill.feature_loss": "frs"}))
    with pytest.raises(StudentError, match="student has 5 FPN levels, the teacher's outputs have 1"):
        train_student(*load_config(str(config), {"distill.student_levels": None}))


def test_class_scores_are_needed_by_default(data: Path, tmp_path: Path, detr: dict[str, str]) -> None:
    config = make_config(data, detr, detector("retinanet"), tmp_path)
    with pytest.raises(ConfigError, match=r"DETRHead: .*Without class scores, set cache\.codec=dict"):
        stage1(config)


def test_a_backbone_alone(data: Path, tmp_path: Path, teacher: dict[str, str]) -> None:
    """C4 of a detector's checkpoint, resized to the grid of the student's P3."""
    alone = {**teacher, "features": "backbone", "out_indices": [2]}
    options = {"distill.student_levels": [0], "distill.interpolate": "bilinear", "distill.adapter": "3x3"}
    config = config_of(data, tmp_path, alone, **options)
    with pytest.raises(ConfigError, match="a backbone predicts no boxes, set it to 0"):
        stage1(config, **{"teacher.min_map": 0.1})
    stage1(config)
    check_live_equals_cached(config)
    model, _ = distiller_and_batch(config, "cache", loss="pkd")
    assert [tuple(a.weight.shape) for a in model.adapters] == [(32, 16, 3, 3)]


def test_levels_of_other_widths(teacher: dict[str, str]) -> None:
    section = TeacherSection(**teacher, features="backbone", out_indices=[1, 2])
    built = Teacher(find_teacher(section), CLASSES, torch.device("cpu"), scores=False)
    views = [torch.zeros(3, *size, dtype=torch.uint8) for size in ((64, 96), (96, 64))]
    assert [f.shape for f in built.by_shape(views).features] == [(2, 16, 12, 12), (2, 32, 6, 6)]
    assert built.shapes((64, 96))[1] == (16, 32)


def test_a_backbone_file_and_a_wrong_one(teacher: dict[str, str], tmp_path: Path) -> None:
    state = torch.load(teacher["checkpoint"], weights_only=True)["state_dict"]
    bare = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    torch.save({**bare, "fc.weight": torch.zeros(3, 3)}, tmp_path / "bare.pth")
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    section = {"config": teacher["config"], "features": "backbone", "out_indices": [2]}
    built = Teacher(
        find_teacher(TeacherSection(**section, checkpoint=str(tmp_path / "bare.pth"))),
        CLASSES,
        torch.device("cpu"),
        scores=False,
    )
    assert torch.equal(built.detector.backbone.state_dict()["conv1.weight"], bare["conv1.weight"])
    with pytest.raises(TeacherError, match=r"does not fit the teacher's backbone: .* keys missing"):
        spec = find_teacher(TeacherSection(**section, checkpoint=str(tmp_path / "other.pth")))
        Teacher(spec, CLASSES, torch.device("cpu"), scores=False)


def test_a_vit_of_timm(data: Path, tmp_path: Path) -> None:
    """Its patch grid is one level of stride 16: the grid of P4."""
    import_timm()
    torch.manual_seed(0)
    model = create("test_vit")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and name != "pos_embed":
                parameter.mul_(4)  # else random tokens hardly differ from place to place
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    vit = {"type": "timm", "name": "test_vit", "checkpoint": str(tmp_path / "vit.pth")}
    config = config_of(data, tmp_path, vit, "frs", **{"distill.student_levels": [1], "distill.adapter": "1x1"})
    summary = stage1(config)
    assert summary["views"] == 12
    trained = train_student(*load_config(str(config)))
    assert trained["iterations"] >= 3
    lossless = config_of(data, tmp_path / "exact", vit, **{"distill.student_levels": [1]})
    stage1(lossless)
    check_live_equals_cached(lossless)


def test_mistakes_with_timm(tmp_path: Path) -> None:
    import_timm()
    with pytest.raises(ConfigError, match="timm has no model 'test_vitt'; did you mean 'test_vit"):
        find_teacher(TeacherSection(type="timm", name="test_vitt", checkpoint="vit.pth"))
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "vit.pth")
    spec = find_teacher(TeacherSection(type="timm", name="test_vit", checkpoint=str(tmp_path / "vit.pth")))
    assert MODELS.get("FeatureExtractor") and spec.cfg.model.data_preprocessor.std[0] > 1
    with pytest.raises(TeacherError, match="does not fit the teacher's backbone"):
        Teacher(spec, CLASSES, torch.device("cpu"), scores=False)


def test_the_example_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its student fits a ViT with patches of 14: 800x1088 pixels are 58x78 patches."""
    import_timm()
    monkeypatch.chdir(ROOT)
    cfg, sections = load_config("configs/features/dinov2_retinanet_r50.py")
    with torch.device("meta"):
        vit = MODELS.build({**find_teacher(sections.teacher).cfg.model, "backbone": SMALL_VIT})
        student = MODELS.build(cfg.model)
    shapes = output_shapes(vit, (800, 1088), scores=False)
    assert shapes[0] == ((58, 78),)
    layout = TeacherLayout((((800, 1088), shapes[0]),), shapes[1], 0, None)
    assert check_student(student, layout, sections.distill) == (256,)
