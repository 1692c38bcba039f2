"""Replace `mmcv._ext`, the compiled extension of mmcv, which the plain onedl-mmcv wheel does not contain.

Without it `import mmdet.models` fails. Call `install()` before mmdet is imported:

    from pipeline.mmdet_compat.ops.stand_in import install
    install()
    import mmdet.models

It implements the ops that nearly all detectors of mmdet's zoo need to train and test: `nms`, `nms_match`, `roi_align_*`
(average pooling), `sigmoid_focal_loss_*`, `deform_conv_*`, `modulated_deform_conv_*`, `masked_*` and `carafe_*`. All
other ops exist, because mmcv/utils/ext_loader.py requires them, and raise `UnsupportedOpError` when they are called. If
a compiled `mmcv._ext` exists, it is used instead.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from pipeline.mmdet_compat.ops.backend import EXTENSION, Implementation, torchvision_works, unsupported
from pipeline.mmdet_compat.ops.carafe import carafe_backward, carafe_forward
from pipeline.mmdet_compat.ops.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from pipeline.mmdet_compat.ops.focal import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from pipeline.mmdet_compat.ops.masked_conv import masked_col2im_forward, masked_im2col_forward
from pipeline.mmdet_compat.ops.nms import nms
from pipeline.mmdet_compat.ops.nms_match import nms_match
from pipeline.mmdet_compat.ops.roi_align import roi_align_backward, roi_align_forward


class StandIn(ModuleType):
    """The module registered as `mmcv._ext`. `implementation`: the library that runs its ops."""

    def __init__(self, implementation: Implementation) -> None:
        super().__init__(EXTENSION, __doc__)
        # find_spec raises for a module without a spec. Without a loader, mmcv's check_ops_exist() returns False.
        self.__spec__ = ModuleSpec(EXTENSION, loader=None, origin="pipeline.mmdet_compat.ops.stand_in")
        self.implementation: Implementation = implementation
        self.nms = nms
        self.nms_match = nms_match
        self.roi_align_forward = roi_align_forward
        self.roi_align_backward = roi_align_backward
        self.sigmoid_focal_loss_forward = sigmoid_focal_loss_forward
        self.sigmoid_focal_loss_backward = sigmoid_focal_loss_backward
        self.carafe_forward = carafe_forward
        self.carafe_backward = carafe_backward
        self.deform_conv_forward = deform_conv_forward
        self.deform_conv_backward_input = deform_conv_backward_input
        self.deform_conv_backward_parameters = deform_conv_backward_parameters
        self.modulated_deform_conv_forward = modulated_deform_conv_forward
        self.modulated_deform_conv_backward = modulated_deform_conv_backward
        self.masked_im2col_forward = masked_im2col_forward
        self.masked_col2im_forward = masked_col2im_forward
        # mmcv's collect_env() calls both functions.
        self.get_compiler_version = lambda: f"n/a ({implementation} stand-in)"
        self.get_compiling_cuda_version = lambda: "n/a"

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        # inspect and other libraries look up private names in every module. No op has such a name.
        if name.startswith("_"):
            raise AttributeError(f"module '{EXTENSION}' has no attribute '{name}'")
        return _raising(name)


def _raising(name: str) -> Callable[..., NoReturn]:
    def op(*args: Any, **kwargs: Any) -> NoReturn:
        raise unsupported(name)

    op.__name__ = op.__qualname__ = name
    return op


def install() -> Implementation:
    """Make `mmcv._ext` importable. Call this before mmdet is imported. More calls have no effect.

    Returns:
        'compiled' if mmcv has its own extension, which is not changed; 'torchvision' if torchvision's ops work;
        otherwise 'torch'.

    Raises:
        ModuleNotFoundError: mmcv itself is not installed.
    """
    present = sys.modules.get(EXTENSION)
    if isinstance(present, StandIn):
        return present.implementation
    if present is not None or _compiled_imports():
        return "compiled"
    stand_in = StandIn("torchvision" if torchvision_works("cpu") else "torch")
    sys.modules[EXTENSION] = stand_in
    return stand_in.implementation


def _compiled_imports() -> bool:
    """Return whether mmcv has a compiled extension that can be imported. Warn if it exists but is broken."""
    sys.modules.pop(EXTENSION, None)  # None marks a blocked import, on which find_spec raises
    if importlib.util.find_spec(EXTENSION) is None:
        return False
    try:
        importlib.import_module(EXTENSION)
    except (ImportError, OSError) as error:  # usually built for another torch
        reason = str(error).partition("\n")[0] or type(error).__name__
        message = f"{EXTENSION} cannot be imported ({reason}); using {__name__} instead"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        return False
    return True
