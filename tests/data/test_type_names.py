"""A type may be a name, a scoped name or a class, as mmengine allows; two spellings make one cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import MODELS, build, plain, type_name
from pipeline.recipe import read_inputs
from pipeline.stage2.train import train_student
from tests.conftest import detector, make_config, stage1

NAMES = (
    "LoadImageFromFile",
    "LoadAnnotations",
    "Resize",
    "RandomFlip",
    "PackDetInputs",
    "CocoDataset",
    "CocoMetric",
    "EpochBasedTrainLoop",
    "CheckpointHook",
)
SCOPES = {"EpochBasedTrainLoop": "mmengine.", "CheckpointHook": "mmengine."}
IMPORTS = """from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize
from mmdet.evaluation import CocoMetric
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop
"""
INHERITED = """from mmengine.config import read_base
with read_base():
    from .config import *
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import Resize
train_dataloader.dataset.update(type=CocoDataset)
train_dataloader.dataset.pipeline[2].update(type=Resize)
"""


@pytest.fixture(params=["scoped", "classes", "read_base"])
def spelled(request: pytest.FixtureRequest, data: Path, teacher: dict, tmp_path: Path) -> tuple[Path, Path]:
    """A config as the others write it, and the same with its types spelled in another way."""
    usual = make_config(data, teacher, detector("retinanet"), tmp_path, **{"train_cfg.type": "EpochBasedTrainLoop"})
    other_config = tmp_path / "other.py"
    if request.param == "read_base":
        other_config.write_text(INHERITED)
        return usual, other_config
    text = usual.read_text()
    for name in NAMES:
        other = name if request.param == "classes" else f"'{SCOPES.get(name, 'mmdet.')}{name}'"
        assert f"type='{name}'" in text
        text = text.replace(f"type='{name}'", f"type={other}")
    other_config.write_text((IMPORTS if request.param == "classes" else "") + text)
    return usual, other_config


def test_two_spellings_are_one_cache(spelled: tuple[Path, Path]) -> None:
    usual, other = (read_inputs(*load_config(str(path))) for path in spelled)
    assert usual.recipe == other.recipe and usual.views.recognised == other.views.recognised


@pytest.mark.slow
def test_both_stages(spelled: tuple[Path, Path]) -> None:
    usual, other = spelled
    stage1(usual, **{"cache.passes": 1})
    summary = train_student(*load_config(str(other), {"cache.passes": 1}))
    assert summary["iterations"] >= 2


def test_type_names() -> None:
    assert [type_name(kind) for kind in ("Resize", "mmdet.Resize", Path, "a.b.Resize")] == [
        "Resize",
        "Resize",
        "Path",
        "Resize",
    ]
    assert plain({"type": "mmdet.Resize", "scale": (1, 2)}) == {"type": "Resize", "scale": [1, 2]}
    assert plain({"type": 5, "to": {"type": Path}}) == {"type": 5, "to": {"type": "Path"}}


def test_a_missing_optional_package_is_one_line() -> None:
    """mmdet's language models raise RuntimeError without the package transformers."""

    class NeedsPackage:
        def __init__(self) -> None:
            raise RuntimeError("transformers is not installed, please install it by: pip install transformers.")

    MODELS.register_module("NeedsPackage", module=NeedsPackage, force=True)
    with pytest.raises(ConfigError, match="model: cannot be built from the config: RuntimeError: transformers is not"):
        build(MODELS, {"type": "NeedsPackage"}, "model")
