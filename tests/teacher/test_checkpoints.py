"""Checkpoints of mmdet 1, 2 and 3 and of other tools load as they are, or end in one line."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from pipeline.errors import ConfigError, StudentError, TeacherError
from pipeline.mmdet_compat.registry import DATASETS, MODELS, Config
from pipeline.sections import TeacherSection
from pipeline.stage2.inherit import inherit
from pipeline.stage2.resume import check_starting_weights, guard_loading
from pipeline.teacher.class_names import require_classes
from pipeline.teacher.fit import load_strict
from pipeline.teacher.model import Teacher
from pipeline.teacher.weights import load_plain, read_checkpoint
from pipeline.teacher.zoo import find_teacher
from tests.helpers import checkpoints
from tests.helpers.checkpoints import State, mmdet1, mmdet2, mmdet3, ordered, under
from tests.helpers.datasets import CLASSES
from tests.helpers.detectors import detector, save_teacher
from tests.helpers.servers import web_server

CPU = torch.device("cpu")
OLD_FCOS = {"conv_cls": "fcos_cls", "conv_reg": "fcos_reg", "conv_centerness": "fcos_centerness"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """A thin teacher of each of two families: config and checkpoint."""
    folder = tmp_path_factory.mktemp("teachers")
    return {name: save_teacher(folder / name, detector(name)) for name in ("retinanet", "fcos")}


def weights(files: dict[str, str]) -> State:
    return torch.load(files["checkpoint"], weights_only=True)["state_dict"]


def loaded(files: dict[str, str], path: Path, **options: Any) -> State:
    section = TeacherSection(config=files["config"], checkpoint=str(path), **options)
    return Teacher(find_teacher(section), CLASSES, CPU).detector.state_dict()


def equal(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def renamed(state: State, names: dict[str, str]) -> State:
    """Replace parts of keys between dots."""
    return {".".join(names.get(part, part) for part in key.split(".")): value for key, value in state.items()}


WRITERS = {
    "mmdet 1": mmdet1,
    "mmdet 2": mmdet2,
    "mmdet 2, zip": lambda *a: mmdet2(*a, zipped=True),
    "mmdet 3": mmdet3,
    "DETR": checkpoints.detr,
    "YOLOX": checkpoints.yolox,
    "bare": checkpoints.bare,
    "only the average": checkpoints.only_average,
    "DDP": under("module."),
    "DDP twice": under("module.module."),
    "Lightning": under("model."),
    "compiled": under("_orig_mod."),
    "mmrazor": under("architecture.", distiller={"connectors.0.weight": torch.ones(1)}),
    "mmrazor, another teacher": under("architecture.", teacher={"backbone.conv1.weight": torch.ones(8, 3, 7, 7)}),
    "preprocessor": under("", data_preprocessor={"mean": torch.ones(3, 1, 1), "std": torch.ones(3, 1, 1)}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_files_of_every_tool_give_the_same_weights(writer: str, files: dict, tmp_path: Path) -> None:
    state = weights(files["retinanet"])
    WRITERS[writer](state, tmp_path / "file.pth", CLASSES)
    assert equal(loaded(files["retinanet"], tmp_path / "file.pth"), state)


def test_fixtures_are_what_they_claim(files: dict, tmp_path: Path) -> None:
    """Old files are no zip files, and torch alone refuses numpy 1's scalars."""
    state = weights(files["retinanet"])
    for writer in (mmdet1, mmdet2):
        writer(state, tmp_path / "old.pth", CLASSES)
        assert (tmp_path / "old.pth").read_bytes().startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(pickle.UnpicklingError, match=r"numpy\.core\.multiarray\.scalar"):
        torch.load(tmp_path / "old.pth", weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, files: dict, tmp_path: Path) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights(files["retinanet"]).items()}
    mmdet2(state, tmp_path / "half.pth", CLASSES)
    found = loaded(files["retinanet"], tmp_path / "half.pth")
    assert all(torch.equal(found[key], state[key].to(found[key].dtype)) for key in found)


def test_counters_may_be_missing(files: dict, tmp_path: Path) -> None:
    state = {k: v for k, v in weights(files["retinanet"]).items() if not k.endswith("num_batches_tracked")}
    mmdet1(state, tmp_path / "old.pth", CLASSES)
    found = loaded(files["retinanet"], tmp_path / "old.pth")
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("write", [mmdet1, under("module.")])
def test_old_fcos_names(write: Callable, files: dict, tmp_path: Path) -> None:
    """mmdet's head converts them if the file has no version of the head."""
    state = weights(files["fcos"])
    old = renamed(state, OLD_FCOS)
    assert len(old.keys() - state.keys()) == 6
    if write is not mmdet1:
        old = {f"module.{key}": value for key, value in old.items()}
        torch.save(ordered(old), tmp_path / "fcos.pth")
    else:
        write(old, tmp_path / "fcos.pth", CLASSES)
    assert equal(loaded(files["fcos"], tmp_path / "fcos.pth"), state)


def test_the_version_in_the_file_decides(files: dict, tmp_path: Path) -> None:
    old = renamed(weights(files["fcos"]), OLD_FCOS)
    torch.save({"state_dict": ordered(old, 1)}, tmp_path / "new.pth")
    with pytest.raises(TeacherError, match=r"6 keys missing .first: bbox_head.conv_cls.weight., 6 keys unexpected"):
        loaded(files["fcos"], tmp_path / "new.pth")


def test_conversions_of_mmcv_and_mmdet() -> None:
    """Deformable convolutions, weight standardisation, an RPN as one-stage detector."""
    from mmcv.cnn.bricks import ConvAWS2d
    from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack

    for pack in (DeformConv2dPack, ModulatedDeformConv2dPack):
        model = nn.ModuleDict({"conv2": pack(4, 4, 3)})
        state = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
        load_strict(
            model, ordered({k.replace("conv2.conv_offset", "conv2_offset"): v for k, v in state.items()}), Path()
        )
        assert equal(model.state_dict(), state)
    plain = {k: v for k, v in ConvAWS2d(4, 4, 3).state_dict().items() if "gamma" not in k and "beta" not in k}
    load_strict(ConvAWS2d(4, 4, 3), ordered(plain), Path())
    model = MODELS.build(Config({"model": detector("retinanet")}).model)
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    load_strict(model, ordered(renamed(state, {"bbox_head": "rpn_head"})), Path())
    assert equal(model.state_dict(), state)


def test_two_copies(files: dict, tmp_path: Path) -> None:
    """A semi-supervised checkpoint has a teacher and a student. Equal copies are no question; others are."""
    state, path = weights(files["retinanet"]), tmp_path / "semi.pth"
    under("teacher.", student=state)(state, path, CLASSES)
    assert equal(loaded(files["retinanet"], path), state)
    other = {key: value + 1 for key, value in state.items()}
    under("teacher.", student=other)(state, path, CLASSES)
    with pytest.raises(TeacherError, match=r"more than once, under student\. and teacher\.; save the part"):
        loaded(files["retinanet"], path)
    under("", teacher=other)(state, path, CLASSES)
    assert "student." not in load_plain(path)["state_dict"]
    with pytest.raises(TeacherError, match=r"keys unexpected .first: teacher.backbone"):
        loaded(files["retinanet"], path)


def bad_files(state: State) -> dict[str, tuple[Any, str]]:
    """Contents that cannot be loaded, and what the message says."""
    key, value = "neck.fpn_convs.0.conv.bias", state["neck.fpn_convs.0.conv.bias"]
    quantised = torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)
    official = {"backbone.backbone.stem.conv.conv.weight": torch.ones(8, 12, 3, 3), "head.stems.0.bias": torch.ones(8)}
    two_stage = {**renamed(state, {"bbox_head": "rpn_head"}), "bbox_head.fc_cls.weight": torch.ones(4, 8)}
    return {
        "empty": ({"state_dict": {}, "meta": {}}, "no weights found; .* found the keys: state_dict, meta"),
        "nothing": ({}, "no weights found; .* found the keys: none"),
        "optimizer": ({"optimizer": {"state": {}}, "epoch": 3}, "found the keys: optimizer, epoch"),
        "two networks": ({"student": state, "teacher": state}, "weights under 2 keys; .*: student, teacher"),
        "a list": ([value], "expected a dict with a state_dict, found list"),
        "no tensors": ({"state_dict": {"a": 1}}, "no weights found"),
        "quantised": ({**state, key: quantised}, f"{key} is a quantised tensor"),
        "sparse": ({**state, key: value.to_sparse()}, f"{key} is a sparse or nested tensor"),
        "meta": ({**state, key: value.to("meta")}, f"{key} is a meta tensor"),
        "integers": ({**state, key: value.to(torch.int8)}, f"{key} is torch.int8; expected floating-point weights"),
        "complex": ({**state, key: value.to(torch.complex64)}, f"{key} is torch.complex64"),
        "shape": ({**state, key: value[:3]}, f"1 keys of another shape .first: {key}."),
        "names": (
            {"model": official},
            "keys missing .first: backbone.conv1.weight., 2 keys unexpected .first: head.stems.0.bias.",
        ),
        "two-stage": (two_stage, "keys unexpected"),
        "a module": ({"model": nn.Linear(2, 2)}, "not a plain weight file: .*torch.nn.modules.linear.Linear"),
    }


@pytest.mark.parametrize("name", bad_files({"neck.fpn_convs.0.conv.bias": torch.ones(16)}))
def test_files_that_cannot_be_loaded(name: str, files: dict, tmp_path: Path) -> None:
    content, message = bad_files(weights(files["retinanet"]))[name]
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(TeacherError, match=message) as stopped:
        loaded(files["retinanet"], tmp_path / "bad.pth")
    assert "\n" not in str(stopped.value) and "bad.pth" in str(stopped.value)


def test_class_names(files: dict) -> None:
    """Spelling is free up to case, spaces, hyphens and underscores. The count never is."""
    coco, path = DATASETS.get("CocoDataset").METAINFO["classes"], Path("c.pth")
    underscored = checkpoints.coco_underscored()
    assert underscored != coco and "traffic_light" in underscored
    require_classes({"CLASSES": underscored}, coco, path, "same")
    require_classes({"dataset_meta": {"classes": [c.upper() for c in coco]}}, coco, path, "same")
    other = ("person", "pushbike", *coco[2:])
    message = r"1 of 80 class names differ: label 1 is 'pushbike' in the checkpoint and 'bicycle' in the dataset; .*"
    with pytest.raises(TeacherError, match=message + "teacher.class_names='any'"):
        require_classes({"CLASSES": other}, coco, path, "same")
    require_classes({"CLASSES": other}, coco, path, "any")
    for check in ("same", "any"):
        with pytest.raises(TeacherError, match=r"trained on 79 classes .* the dataset has 80"):
            require_classes({"CLASSES": coco[:79]}, coco, path, check)


def test_class_names_of_a_file(files: dict, tmp_path: Path) -> None:
    state, path = weights(files["retinanet"]), tmp_path / "names.pth"
    mmdet2(state, path, ("Person", "motor car", "dog"))
    with pytest.raises(TeacherError, match="label 1 is 'motor car'"):
        loaded(files["retinanet"], path)
    assert equal(loaded(files["retinanet"], path, class_names="any"), state)


WEIRD = [None, "person", 7, {}, {"a": 1}, {"classes": None}, [], [[]], {"classes": torch.ones(3)}, torch.ones(3), True]


@pytest.mark.parametrize("key", ["CLASSES", "dataset_meta", "classes"])
@pytest.mark.parametrize("value", WEIRD, ids=str)
def test_class_names_of_any_type(key: str, value: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": {key: value}}, tmp_path / "odd.pth")
    _, meta = read_checkpoint(tmp_path / "odd.pth")
    if key != "dataset_meta" and value == [[]]:
        with pytest.raises(TeacherError, match="trained on 1 class"):
            require_classes(meta, CLASSES, tmp_path, "same")
    else:
        require_classes(meta, CLASSES, tmp_path, "same")
    require_classes({"CLASSES": dict(enumerate(CLASSES))}, CLASSES, tmp_path, "same")


@pytest.mark.parametrize("meta", [[], "x", None, 3])
def test_meta_of_any_type(meta: Any, files: dict, tmp_path: Path) -> None:
    torch.save({"state_dict": weights(files["retinanet"]), "meta": meta}, tmp_path / "odd.pth")
    loaded(files["retinanet"], tmp_path / "odd.pth")


def test_inherited_weights_have_old_names_too(files: dict, tmp_path: Path) -> None:
    state = weights(files["fcos"])
    mmdet1(renamed(state, OLD_FCOS), tmp_path / "old.pth", CLASSES)
    student = MODELS.build(Config({"model": detector("fcos", depth=34)}).model)
    before = {key: value.clone() for key, value in student.state_dict().items() if key.startswith("backbone.")}
    inherit(student, tmp_path / "old.pth")
    after = student.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(torch.equal(after[key], value) for key, value in state.items() if not key.startswith("backbone."))


@pytest.mark.parametrize("writer", ["mmdet 1", "mmdet 2", "DETR", "DDP"])
def test_load_from(writer: str, files: dict, tmp_path: Path) -> None:
    """mmengine gets the student's own names, because the Distiller's prefix would prevent mmdet's conversions."""
    state, path = weights(files["fcos"]), tmp_path / "start.pth"
    WRITERS[writer](renamed(state, OLD_FCOS) if writer == "mmdet 1" else state, path, CLASSES)
    student = MODELS.build(Config({"model": detector("fcos")}).model)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    cfg = Config({"model": detector("fcos"), "load_from": str(path)})
    guard_loading(check_starting_weights(cfg, student, None))
    assert equal(CheckpointLoader.load_checkpoint(str(path))["state_dict"], state)
    assert equal(student.state_dict(), before), "checking must not change the student"
    deeper = MODELS.build(Config({"model": detector("fcos", depth=34)}).model)
    with pytest.raises(StudentError, match=r"load_from: .*start.pth does not fit the student: .* keys missing"):
        check_starting_weights(cfg, deeper, None)


def test_pretrained_backbones(files: dict, tmp_path: Path) -> None:
    """A backbone's file may have another container or a prefix; the message names the prefix that fits."""
    student = MODELS.build(Config({"model": detector("retinanet")}).model)
    own = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in student.backbone.state_dict().items()}
    path = tmp_path / "backbone.pth"

    def checked(**init: Any) -> None:
        cfg = Config({"model": detector("retinanet")})
        cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(path), **init}
        guard_loading(check_starting_weights(cfg, student, None))
        student.backbone.init_cfg = cfg.model.backbone.init_cfg
        student.backbone._is_init = False
        student.backbone.init_weights()
        assert equal(student.backbone.state_dict(), own)
        for value in student.backbone.state_dict().values():
            value.zero_()

    for writer in ("DETR", "mmdet 1", "bare", "DDP"):
        WRITERS[writer](own, path)
        checked()
    under("module.encoder_q.")(own, path)
    with pytest.raises(ConfigError, match=r"no weight of this backbone; set init_cfg.prefix='module.encoder_q.'"):
        checked()
    checked(prefix="module.encoder_q.")
    checked(prefix="module.encoder_q")


def test_weights_from_a_server(files: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files from http, and so torchvision:// and open-mmlab://, are read as plain data as well."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    state = weights(files["retinanet"])
    checkpoints.detr(state, tmp_path / "model.pth")
    code = type("Code", (), {"__reduce__": lambda self: ((tmp_path / "ran").touch, ())})
    sys.modules[__name__].Code = code
    torch.save({"state_dict": state, "meta": code()}, tmp_path / "code.pth")
    guard_loading()
    with web_server(tmp_path) as server:
        urls = {name: f"{server.address}/{name}.pth" for name in ("model", "code", "none")}
        monkeypatch.setattr("mmengine.runner.checkpoint.get_torchvision_models", lambda: urls)
        for name in (urls["model"], "torchvision://model"):
            assert equal(CheckpointLoader.load_checkpoint(name, map_location="cpu")["state_dict"], state)
        assert len(server.asked) == 1
        for name in (urls["code"], "torchvision://code"):
            with pytest.raises(TeacherError, match="not a plain weight file"):
                CheckpointLoader.load_checkpoint(name)
        with pytest.raises(TeacherError, match=r"none\.\w+\.pth is missing, .* cannot be downloaded"):
            CheckpointLoader.load_checkpoint("torchvision://none")
    assert not (tmp_path / "ran").exists()
