"""Which library runs the ops: torchvision where it works, else plain torch."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from pipeline.errors import ConfigError

EXTENSION = "mmcv._ext"
Implementation = Literal["compiled", "torchvision", "torch"]


class UnsupportedOpError(ConfigError, NotImplementedError):
    """The model calls an op that only mmcv's compiled extension has."""


def unsupported(op: str) -> UnsupportedOpError:
    """The error that names an op and says what to do."""
    return UnsupportedOpError(
        f"mmcv op '{op}' exists only in mmcv's compiled extension ({EXTENSION}), which is not installed: "
        "install an mmcv built with its ops, or choose a model that does without this op"
    )


@cache
def torchvision_works(device_type: str) -> bool:
    """Whether torchvision's nms and roi_align run on 'cpu' or 'cuda', found out by a tiny call.

    A torchvision built for another torch fails at import or at the first call, with various exceptions; one
    built without CUDA works on the CPU only.
    """
    try:
        import torchvision  # noqa: F401  (registers torch.ops.torchvision)

        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]], device=device_type)
        kept = torch.ops.torchvision.nms(boxes, boxes.new_tensor([0.5, 0.9]), 0.5)
        rois = boxes.new_tensor([[0.0, 0, 0, 2, 2]])
        ones = torch.ones(1, 1, 4, 4, device=device_type)
        pooled = torch.ops.torchvision.roi_align(ones, rois, 1.0, 1, 1, 2, False)
        grad = torch.ops.torchvision._roi_align_backward(pooled, rois, 1.0, 1, 1, 1, 1, 4, 4, 2, False)
        return kept.tolist() == [1] and pooled.item() == 1 and abs(grad.sum().item() - 1) < 1e-6
    except Exception:  # whatever a broken install raises, plain torch serves
        return False


def use_torchvision(tensor: Tensor) -> bool:
    """Whether an op on this tensor goes through torchvision."""
    # torchvision's CUDA gradient adds atomically and refuses to run in deterministic mode; ours is a gather.
    if tensor.is_cuda and torch.are_deterministic_algorithms_enabled():
        return False
    return torchvision_works(tensor.device.type)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half and integer types as float32; float32 and float64 as they are.

    mmcv's kernels compute box coordinates in the input's own type; in half precision that loses whole pixels.
    """
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
