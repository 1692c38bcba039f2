"""Float32 for teacher and codec, whatever the process has set for its student, by either of torch's interfaces.

An operator follows its own `fp32_precision`, else on CUDA that of torch.backends.cudnn (despite its name also that of
matrix products), else that of torch.backends. The older switches (`allow_tf32`, torch.set_float32_matmul_precision) set
an operator's own value and keep a second one beside it; their getters raise a RuntimeError where the two differ. So the
newer settings are used here, and an operator that inherits gets no value of its own, which nothing could take back.
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
    """Compute float32 in full inside, on CUDA with TF32 if `tf32`; afterwards every setting is what it was before.

    Inside, the older getters may raise; `fp32_precision` can be read.
    """
    wanted, replaced = "tf32" if tf32 else "ieee", []
    before = [_readable(get) for get, _ in SETTINGS]
    inherited, ALL.fp32_precision = ALL.fp32_precision, "none"
    own = CUDA.fp32_precision  # which would show an inherited value as well
    try:
        ALL.fp32_precision, CUDA.fp32_precision = "ieee", wanted
        for operators, value in ((CUDA_OPERATORS, wanted), (CPU_OPERATORS, "ieee")):
            for operator in operators:
                if operator.fp32_precision != value:  # it does not inherit
                    replaced.append((operator, operator.fp32_precision))
                    operator.fp32_precision = value
        yield
    finally:
        for operator, value in replaced:
            operator.fp32_precision = value
        ALL.fp32_precision, CUDA.fp32_precision = inherited, own
        for (get, put_back), value in zip(SETTINGS, before):
            if value is not None and _readable(get) != value:  # code inside has changed it
                put_back(value)


def _setting(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return partial(getattr, owner, name), partial(setattr, owner, name)


def _readable(get: Callable[[], Any]) -> Any:
    """The value of a setting; None where torch refuses, as the two interfaces differ."""
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
SETTINGS = [*NEWER, *OLDER, *NEWER]  # in the order in which they are put back: the older ones write newer ones too
