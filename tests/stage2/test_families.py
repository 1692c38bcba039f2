"""Four detector families: live equals cached, losses equal an independent reference, both stages run end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cache.cache import Cache
from pipeline.config import load_config
from pipeline.errors import ConfigError, StudentError
from pipeline.integrity.verify import collect_findings
from pipeline.mmdet_compat.registry import MODELS, Config
from pipeline.progress import Silent
from pipeline.stage2.distiller import Distiller
from pipeline.stage2.runner import wrap_student
from pipeline.stage2.teacher_data import prepare_teacher_data
from pipeline.stage2.train import train_student
from tests.helpers.configs import make_config
from tests.helpers.detectors import FAMILIES, detector, save_teacher
from tests.helpers.distillation import distiller_and_batch, step
from tests.helpers.related import short_training
from tests.helpers.stages import stage1


def reference_losses(model: Distiller, batch: dict) -> dict[str, float]:
    """Compute the losses of method.md in numpy, over each view's own padded grid."""
    source = model._source[0]
    taken = source.take(batch, torch.device("cpu"))
    with torch.no_grad():
        target = source.output(taken)
        inputs = model.student.data_preprocessor({"inputs": batch["inputs"]}, True)["inputs"]
        features = model.student.extract_feat(inputs)
        head = getattr(model.student, "rpn_head", None) or model.student.bbox_head
        logits = head(features)[0]
        adapted = [adapter(f) for adapter, f in zip(model.adapters, features)]
    feature = score = 0.0
    for level, stride in enumerate(detector_strides(model)):
        top = bottom = entropy = 0.0
        for b, view in enumerate(batch["inputs"]):
            height, width = (-(-n // 32) * 32 for n in view.shape[1:])
            h, w = -(-height // stride), -(-width // stride)
            t = target.scores[level][b, :, :h, :w].double().numpy()
            y = target.features[level][b, :, :h, :w].double().numpy()
            a = adapted[level][b, :, :h, :w].double().numpy()
            s = 1 / (1 + np.exp(-logits[level][b, :, :h, :w].double().numpy()))
            m = t.max(axis=0)
            top += (m * ((y - a) ** 2).sum(axis=0)).sum()
            entropy += (m * -(t * np.log(s) + (1 - t) * np.log(1 - s)).sum(axis=0)).sum()
            bottom += m.sum()
        feature += top / bottom
        score += entropy / bottom
    section = model.section
    return {"loss_frs_feature": section.feature_weight * feature, "loss_frs_score": section.score_weight * score}


def detector_strides(model: Distiller) -> list[int]:
    return [4, 8, 16, 32, 64] if hasattr(model.student, "rpn_head") else [8, 16, 32, 64, 128]


@pytest.mark.parametrize("family", FAMILIES)
def test_live_equals_cached_and_reference(family: str, data: Path, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", detector(family, depth=34))
    config = make_config(data, teacher, detector(family), tmp_path, "lossless")
    stage1(config)
    cached_model, cached_batch = distiller_and_batch(config, "cache")
    live_model, live_batch = distiller_and_batch(config, "live")
    assert len({tuple(v.shape) for v in cached_batch["inputs"]}) > 1, "the batch should mix shapes"
    cached, cached_gradients = step(cached_model, cached_batch)
    live, live_gradients = step(live_model, live_batch)
    expected = reference_losses(live_model, live_batch)
    for name, value in cached.items():
        assert value.item() > 0
        assert value.item() == pytest.approx(live[name].item(), rel=1e-5)
        assert value.item() == pytest.approx(expected[name], rel=1e-4)
    assert cached_gradients.keys() == live_gradients.keys() and cached_gradients
    flat = [torch.cat([g[n].flatten() for n in g]) for g in (cached_gradients, live_gradients)]
    assert torch.linalg.norm(flat[0] - flat[1]) <= 1e-5 * torch.linalg.norm(flat[1])


@pytest.mark.parametrize("loss", ["pkd", "cwd", "mgd"])
def test_one_cache_serves_other_losses(loss: str, made: dict[str, Path]) -> None:
    cached_model, cached_batch = distiller_and_batch(made["lossless"], "cache", loss=loss)
    assert len({tuple(v.shape) for v in cached_batch["inputs"]}) > 1, "the batch should mix shapes"
    cached, gradients = step(cached_model, cached_batch)
    live, wanted = step(*distiller_and_batch(made["lossless"], "live", loss=loss))
    assert set(cached) == {"loss_frs_score", f"loss_{loss}_feature"}
    for name, value in cached.items():
        assert 0 < value.item() == pytest.approx(live[name].item(), rel=1e-5)
    flat = [torch.cat([g[n].flatten() for n in g]) for g in (gradients, wanted)]
    assert torch.linalg.norm(flat[0] - flat[1]) <= 1e-5 * torch.linalg.norm(flat[1])
    trained = list(cached_model.adapters.parameters())  # PKD and CWD need none, as both have the same width
    assert (loss == "mgd") == bool(trained)


SLOWER = [pytest.param(family, marks=pytest.mark.slow) for family in ("gfl", "fcos")]


@pytest.mark.parametrize("family", ["retinanet", "faster-rcnn", *SLOWER])
def test_both_stages(family: str, data: Path, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", detector(family, depth=34))
    config = make_config(data, teacher, detector(family), tmp_path, "frs", **{"cache.passes": 1})
    made = stage1(config)
    assert made["views"] == 12 and made["views_computed"] == 12
    Path(teacher["checkpoint"]).unlink()  # stage 2 must not need it
    cfg, sections = load_config(str(config))
    summary = train_student(cfg, sections)
    assert summary["content"] == made["content"] and summary["iterations"] >= 3
    assert 0 <= summary["mAP"] <= 1


def test_frs_codec_is_close_to_live(made: dict[str, Path]) -> None:
    """The gradient error of the lossy codec on a student has the order of magnitude of its settings."""
    config = made["frs"]
    _, cached = step(*distiller_and_batch(config, "cache"))
    _, live = step(*distiller_and_batch(config, "live"))
    exact = torch.cat([live[n].flatten() for n in live])
    error = torch.linalg.norm(torch.cat([cached[n].flatten() for n in live]) - exact) / torch.linalg.norm(exact)
    assert 0 < error < 0.1


def test_teacher_is_not_part_of_the_student(data: Path, teacher: dict, tmp_path: Path) -> None:
    config = make_config(data, teacher, detector("retinanet"), tmp_path)
    model, _ = distiller_and_batch(config, "live")
    names = [name for name, _ in model.named_parameters()]
    assert names and all(name.startswith(("student.", "adapters.")) for name in names)
    assert sum(p.numel() for p in model.student.parameters()) == sum(
        p.numel() for p in MODELS.build(Config.fromfile(config).model).parameters()
    )


def test_box_distributions_of_a_live_gfl(data: Path, tmp_path: Path) -> None:
    """LD reaches the box branch, and almost vanishes for the teacher itself."""
    gfl = save_teacher(tmp_path / "gfl", detector("gfl"))
    config = make_config(data, gfl, detector("gfl"), tmp_path, "lossless", **{"distill.box_weight": 2.0})
    model, batch = distiller_and_batch(config, "live")
    losses = model(**model.data_preprocessor(batch, True), mode="loss")
    assert losses["loss_ld_box"] > 0 and losses["loss_frs_score"] > 0
    (gradient,) = torch.autograd.grad(losses["loss_ld_box"], model.student.bbox_head.gfl_reg.weight)
    assert gradient.any()
    model.student.load_state_dict(model._source[0].teacher.detector.state_dict())
    model.student.eval()
    same = model(**model.data_preprocessor(batch, True), mode="loss")
    assert float(same["loss_ld_box"]) < 0.05 * float(losses["loss_ld_box"])  # views are padded together here


@pytest.mark.parametrize(("codec", "close"), [("lossless", 1e-5), ("frs2", 0.02)])
def test_cached_box_distributions(data: Path, tmp_path: Path, codec: str, close: float) -> None:
    """LD from a cache is LD with the live teacher, up to what the codec loses."""
    gfl = save_teacher(tmp_path / "gfl", detector("gfl"))
    options = {"distill.box_weight": 2.0, "cache.codec.boxes": True, "cache.passes": 1}
    config = make_config(data, gfl, detector("gfl"), tmp_path, codec, **options)
    with short_training(5):
        stage1(config)
    reader = Cache(tmp_path / "cache").shard(0, 0)
    positions = sum(h * w for h, w in reader.levels(0))
    assert reader.read(0)["boxes"].shape == (positions, 4 * 17)
    assert collect_findings(tmp_path / "cache", True, Silent())["whole"]

    cached_model, batch = distiller_and_batch(config, "cache")
    live_model, live_batch = distiller_and_batch(config, "live")
    losses = [
        m(**m.data_preprocessor(b, True), mode="loss") for m, b in ((cached_model, batch), (live_model, live_batch))
    ]
    cached, live = (float(found["loss_ld_box"].detach()) for found in losses)
    assert 0 < cached == pytest.approx(live, rel=close)


def test_without_box_distributions(data: Path, tmp_path: Path, teacher: dict[str, str]) -> None:
    options = {"distill.box_weight": 2.0}
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs", **options)
    with pytest.raises(ConfigError, match=r"no box distributions; make a cache with .*boxes=True"):
        distiller_and_batch(config, "cache")
    with pytest.raises(ConfigError, match="RetinaHead predicts no box distributions"):
        distiller_and_batch(config, "live")
    gfl = save_teacher(tmp_path / "gfl", detector("gfl"))
    changed = make_config(data, gfl, detector("gfl"), tmp_path / "c", "frs", **options)
    cfg, sections = load_config(str(changed), {"teacher.source": "live", "model.bbox_head.reg_max": 12})
    with pytest.raises(StudentError, match="have 13 bins a side, the teacher's 17; use the same reg_max"):
        wrap_student(MODELS.build(cfg.model), prepare_teacher_data(cfg, sections), sections.distill)
