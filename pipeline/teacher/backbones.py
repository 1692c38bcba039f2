"""Teachers that are a backbone alone: one of mmdet, or a model of timm. They have features, but no class scores."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.errors import ConfigError, brief
from pipeline.mmdet_compat.registry import MODELS, build

PIXEL = 255.0  # timm's mean and std are fractions of it


@MODELS.register_module()
class FeatureExtractor(nn.Module):
    """A backbone with the parts of a detector that feature losses use. backbone, data_preprocessor: configs."""

    def __init__(self, backbone: dict[str, Any], data_preprocessor: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = build(MODELS, backbone, "teacher's backbone")
        self.neck = nn.Identity()
        self.data_preprocessor = build(MODELS, data_preprocessor, "teacher's data_preprocessor")

    @property
    def loaded(self) -> nn.Module:
        """The module that weights of a checkpoint are loaded into."""
        return self.backbone.model if isinstance(self.backbone, TimmBackbone) else self.backbone

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the backbone's outputs for preprocessed images (B, 3, H, W)."""
        outputs = self.backbone(inputs)
        return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


@MODELS.register_module()
class TimmBackbone(nn.Module):
    """A model of timm without its classifier. A ViT gives its patch grid as one level, after the final norm.

    name: timm's name of the model. out_indices: blocks or stages, as in timm's `forward_intermediates`; -1 is the last.
    """

    def __init__(self, name: str, out_indices: Sequence[int] = (-1,)) -> None:
        super().__init__()
        self.model, self._indices = create(name), list(out_indices)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return features (B, C, H_l, W_l) of images (B, 3, H, W)."""
        return self.model.forward_intermediates(inputs, indices=self._indices, norm=True, intermediates_only=True)


def create(name: str) -> Any:
    """Create a model of timm for any image size, with random weights. Raise ConfigError."""
    timm = require_model(name)
    any_size = {"dynamic_img_size": True, "dynamic_img_pad": True}  # only of ViTs
    for options in (any_size, {}):
        try:
            model = timm.create_model(name, pretrained=False, num_classes=0, **options)
            break
        except TypeError as error:
            if not options:
                raise ConfigError(f"teacher.name: timm cannot create {name!r}: {brief(error)}") from error
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"teacher.name: {name!r} of timm has no forward_intermediates; choose another model")
    return model


def timm_config(name: str, out_indices: Sequence[int]) -> dict[str, Any]:
    """Return the config of a FeatureExtractor around a model of timm, with the mean and std of its weights."""
    found = require_model(name).get_pretrained_cfg(name)
    mean, std = (tuple(round(x * PIXEL, 3) for x in getattr(found, part)) for part in ("mean", "std"))
    preprocess = {"type": "DetDataPreprocessor", "mean": mean, "std": std, "bgr_to_rgb": True}
    backbone = {"type": "TimmBackbone", "name": name, "out_indices": tuple(out_indices)}
    return {"type": "FeatureExtractor", "backbone": backbone, "data_preprocessor": preprocess}


def require_model(name: str) -> Any:
    """Return the package timm. Raise ConfigError where it has no such model."""
    timm = import_timm()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"teacher.name: timm has no model {name!r}{hint}")
    return timm


def import_timm() -> Any:
    """Import timm. Raise ConfigError where it or its torchvision cannot be imported."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
        raise ConfigError(
            f"teacher.type='timm': timm cannot be imported: {brief(error)}; pip install 'frs-teacher-cache[timm]'"
        ) from error
    return timm
