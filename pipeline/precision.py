"""Switch TF32 on or off for a block of code, independently of the student's settings.

torch has two interfaces. The newer one is `fp32_precision`. An operator uses its own value. If it has none, it inherits
on CUDA from torch.backends.cudnn, which in spite of its name also applies to matrix products, and then from
torch.backends. The older one is `allow_tf32` and torch.set_float32_matmul_precision. It sets the operator's own value
and stores a second value as well. Its getters raise RuntimeError if the two values differ.

This module therefore uses the newer interface. It does not set an operator that inherits, because torch has no way to
make the operator inherit again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

ALL: Any = torch.backends
CUDA: Any = torch.backends.cudnn
CUDA_OPERATORS: tuple[Any, ...] = (torch.backends.cuda.matmul, CUDA.conv, CUDA.rnn)
CPU_OPERATORS: tuple[Any, ...] = tuple(getattr(torch.backends.mkldnn, name) for name in ("matmul", "conv", "rnn"))


@contextlib.contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Compute in full float32 inside the block, or with TF32 on CUDA if `tf32`. Restore all settings at the end.

    Inside the block, torch's older getters may raise; read `fp32_precision` instead.
    """
    wanted, replaced = "tf32" if tf32 else "ieee", []
    before = [_readable(get) for get, _ in SETTINGS]
    inherited, ALL.fp32_precision = ALL.fp32_precision, "none"
    own = CUDA.fp32_precision  # read now, because it would return an inherited value before
    try:
        ALL.fp32_precision, CUDA.fp32_precision = "ieee", wanted
        for operators, value in ((CUDA_OPERATORS, wanted), (CPU_OPERATORS, "ieee")):
            for operator in operators:
                if operator.fp32_precision != value:  # the operator has its own value
                    replaced.append((operator, operator.fp32_precision))
                    operator.fp32_precision = value
        yield
    finally:
        for operator, value in replaced:
            operator.fp32_precision = value
        ALL.fp32_precision, CUDA.fp32_precision = inherited, own
        for (get, restore), value in zip(SETTINGS, before):
            if value is not None and _readable(get) != value:  # code inside the block changed it
                restore(value)


def _setting(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return partial(getattr, owner, name), partial(setattr, owner, name)


def _readable(get: Callable[[], Any]) -> Any:
    """Return the value of a setting; None if torch raises because the two interfaces differ."""
    try:
        return get()
    except RuntimeError:
        return None


OLDER = [
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _setting(torch.backends.cuda.matmul, "allow_tf32"),
    _setting(CUDA, "allow_tf32"),
]
NEWER = [_setting(operator, "fp32_precision") for operator in (*CUDA_OPERATORS, *CPU_OPERATORS)]
SETTINGS = [*NEWER, *OLDER, *NEWER]  # order of restoring: the older settings overwrite newer ones
