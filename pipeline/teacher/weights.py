"""Read checkpoints without executing code from them, whatever tool wrote them.

Files are always read with `torch.load(weights_only=True)`. Real checkpoints also contain other pickled objects:
training history (HistoryBuffer, numpy scalars), configs and command-line arguments. They become objects that do
nothing.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import TeacherError, brief
from pipeline.teacher.checkpoint_cost import find_cost


class Inert:
    """Replaces a pickled object that is not a weight. Stores nothing and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class InertDict:
    """Replaces a pickled subclass of dict. The unpickler sets items only in the types that it knows."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


# Where the objects of training history, configs and arguments are defined. Nothing is imported from these packages.
PACKAGES = (
    *("argparse.", "copyreg.", "datetime.", "mmcv.", "mmdet.", "mmengine.", "numpy.", "omegaconf.", "pathlib."),
    *("torch.torch_version.", "types.", "typing."),
)
BUILTINS = ("getattr", "bool", "dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str", "tuple")
DICTS = ("ConfigDict", "addict.addict.Dict", "collections.defaultdict", "easydict.EasyDict", "yacs.config.CfgNode")
UNKNOWN = re.compile(r"GLOBAL (\S+) was not an allowed global")
CONTAINERS = ("state_dict", "model", "model_state_dict", "model_state", "ema_state_dict")


def stand_in(name: str) -> type | None:
    """Return the class that replaces a pickled object of this type or function; None for a name that is refused."""
    if name.endswith(DICTS):
        return InertDict
    return Inert if name.startswith(PACKAGES) or name.removeprefix("builtins.") in BUILTINS else None


def load_plain(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Read the dict in a checkpoint. Raise TeacherError where it is unreadable, contains objects that run code, or
    costs more than its size justifies.

    mapped: leave the tensors in the file until they are used, which torch's older file format does not allow.
    """
    try:
        wrong = find_cost(path)
    except OSError as error:
        raise TeacherError(f"{path}: cannot be read as a checkpoint: {brief(error)}") from error
    if wrong is not None:
        raise TeacherError(f"{path}: not loaded: {wrong}")
    content = _read(path, mapped)
    if not isinstance(content, dict):
        raise TeacherError(f"{path}: expected a dict with a state_dict, found {type(content).__name__}")
    return content


def _read(path: Path, mapped: bool) -> Any:
    found: list[tuple[type, str]] = []
    while True:
        try:
            with torch.serialization.safe_globals(found):  # type: ignore[arg-type]
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            unknown = UNKNOWN.search(str(error))
            name = unknown[1] if unknown else ""
            name = f"builtins.{name}" if unknown and "." not in name else name  # torch leaves the module out
            kind = stand_in(name)
            if kind is not None and (kind, name) not in found:
                found.append((kind, name))
                continue
            reason = next((line for line in str(error).splitlines() if "global" in line.lower()), "not a checkpoint")
            raise TeacherError(
                f"{path}: not loaded, because it is not a plain weight file: {reason.strip()[:200]}"
            ) from error
        except Exception as error:  # torch.load of a corrupted file can raise any exception
            raise TeacherError(f"{path}: cannot be read as a checkpoint: {brief(error)}") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (state dict, meta) of a checkpoint or of a bare state dict. Raise TeacherError where it has no weights."""
    content = load_plain(path)
    meta = content.get("meta")
    return find_state(content, path), meta if isinstance(meta, dict) else {}


def find_state(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint, with its `_metadata`, which says which old names must be converted.

    mmengine's `state_dict` has the averaged weights, if EMAHook was used, and `ema_state_dict` those of the last step.
    """
    found = next((content[key] for key in CONTAINERS if _has_tensors(content.get(key))), None)
    if found is None:
        others = [key for key, value in content.items() if _has_tensors(value)]
        found = content if _has_tensors(content) else content[others[0]] if len(others) == 1 else None
    if found is None:
        keys = ", ".join(str(key)[:40] for key in list(content)[:8]) or "none"
        what = f"weights under {len(others)} keys" if others else "no weights found"
        raise TeacherError(
            f"{path}: {what}; expected tensors, or a dict of tensors under one of {', '.join(CONTAINERS)}, found the "
            f"keys: {keys}"
        )
    state = OrderedDict((k, v) for k, v in dict.items(found) if isinstance(k, str) and isinstance(v, Tensor))
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
            kind = "quantised" if value.is_quantized else "meta" if value.is_meta else "sparse or nested"
            raise TeacherError(f"{path}: {key} is a {kind} tensor; expected dense weights, save the file with those")
    metadata = getattr(found, "_metadata", None)
    state._metadata = metadata if isinstance(metadata, dict) else {}  # type: ignore[attr-defined]
    return state


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(one, Tensor) for one in dict.values(value))
