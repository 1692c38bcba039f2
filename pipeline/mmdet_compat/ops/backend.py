"""Choose the library that runs the ops: torchvision if it works, otherwise plain torch."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from pipeline.errors import ConfigError

EXTENSION = "mmcv._ext"
Implementation = Literal["compiled", "torchvision", "torch"]


class UnsupportedOpError(ConfigError, NotImplementedError):
    """The model calls an op that exists only in mmcv's compiled extension."""


def unsupported(op: str) -> UnsupportedOpError:
    """Return the error for an op that is not replaced."""
    return UnsupportedOpError(
        f"mmcv op '{op}' exists only in mmcv's compiled extension ({EXTENSION}), which is not installed: "
        "install an mmcv built with its ops, or choose a model that does not use this op"
    )


@cache
def torchvision_works(device_type: str) -> bool:
    """Return whether torchvision's nms and roi_align run on 'cpu' or 'cuda'. Tests it by a small call.

    A torchvision built for another torch fails at import or at the first call, with various exceptions. One built
    without CUDA works only on the CPU.
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
    except Exception:  # a broken installation can raise any exception; plain torch is used instead
        return False


def use_torchvision(tensor: Tensor) -> bool:
    """Return whether an op on this tensor uses torchvision."""
    # torchvision's CUDA gradient uses atomic additions and raises in deterministic mode. This one gathers.
    if tensor.is_cuda and torch.are_deterministic_algorithms_enabled():
        return False
    return torchvision_works(tensor.device.type)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half and integer tensors as float32, and float32 and float64 tensors unchanged.

    mmcv's kernels compute box coordinates in the input's type. In half precision, the error is several pixels.
    """
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
