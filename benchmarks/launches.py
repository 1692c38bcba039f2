"""Count the operations, kernel launches and synchronisations of a function, and measure how busy the GPU is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from statistics import mean
from types import TracebackType
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

KERNELS = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
SPAN = "measured"


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def counts(part: Callable[[], Any], device: torch.device) -> dict[str, int | None]:
    """Return {'operations', 'kernels', 'synchronisations'} of one call. The last two are None on a CPU.

    Operations are those that compute; views of a tensor are not counted.
    Kernels and synchronisations are those that torch.profiler records in the CUDA runtime.
    """
    with _Operations() as operations:
        part()
    found: dict[str, int | None] = {"operations": operations.count, "kernels": None, "synchronisations": None}
    if device.type != "cuda":
        return found
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        with record_function(SPAN):
            part()
        torch.cuda.synchronize()
    host = [event for event in recorded.events() if event.device_type == DeviceType.CPU]
    span = next(event.time_range for event in host if event.name == SPAN)
    names = [event.name for event in host if span.start <= event.time_range.start <= span.end]
    found["kernels"] = sum(name in KERNELS for name in names)
    found["synchronisations"] = sum(name in WAITS for name in names)
    return found


class BusyShare:
    """Measures the share of time in a block in which the GPU runs a kernel, with nvidia-smi. None without a GPU."""

    COMMAND = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100")

    def __init__(self, device: torch.device) -> None:
        self._device, self.value = device, None if device.type != "cuda" else 0.0

    def __enter__(self) -> BusyShare:
        if self._device.type == "cuda":
            command = [*self.COMMAND, "-i", str(self._device.index or 0)]
            try:
                self._sampler = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            except FileNotFoundError:
                self.value = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.value is not None:
            self._sampler.terminate()
            lines = self._sampler.communicate()[0].splitlines()
            samples = [float(line) / 100 for line in lines if line.strip().isdecimal()]
            self.value = mean(samples) if samples else None
