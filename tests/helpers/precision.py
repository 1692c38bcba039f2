"""Settings of torch's float32 precision: ways to choose them, and what the getters return."""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401  (the getters below name it)

CUDA = [f"torch.backends.{name}.fp32_precision" for name in ("cuda.matmul", "cudnn.conv", "cudnn.rnn")]
CPU = [f"torch.backends.mkldnn.{name}.fp32_precision" for name in ("matmul", "conv", "rnn")]
GETTERS = [
    "torch.backends.fp32_precision",
    "torch.backends.cudnn.fp32_precision",
    *CUDA,
    *CPU,
    "torch.backends.cuda.matmul.allow_tf32",
    "torch.backends.cudnn.allow_tf32",
    "torch.get_float32_matmul_precision()",
]
BEFORE = {
    "untouched": "",
    "older, TF32": "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True",
    "older, no TF32": "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False",
    "older, matmul high": "torch.set_float32_matmul_precision('high')",
    "older, matmul medium": "torch.set_float32_matmul_precision('medium')",
    "newer, all tf32": "torch.backends.fp32_precision = 'tf32'",
    "newer, all ieee": "torch.backends.fp32_precision = 'ieee'",
    "newer, all bf16": "torch.backends.fp32_precision = 'bf16'",
    "newer, matmul": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "newer, cudnn": "torch.backends.cudnn.fp32_precision = 'ieee'",
    "newer, conv": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "newer, all and cudnn": "torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = 'tf32'",
    "both": "torch.set_float32_matmul_precision('high'); torch.backends.cudnn.conv.fp32_precision = 'ieee'",
}


def read(getters: list[str] = GETTERS) -> dict[str, Any]:
    """Return what the getters return; 'raises' where torch refuses."""
    found = {}
    for getter in getters:
        try:
            found[getter] = eval(getter)
        except RuntimeError as error:
            assert "mix of the legacy and new APIs" in str(error)
            found[getter] = "raises"
    return found
