"""Read checkpoints without executing code from them, and load weights with every key checked.

Files are always read with `torch.load(weights_only=True)`. mmengine's checkpoints also contain pickled training history
(HistoryBuffer, numpy arrays, a reference to getattr). These names are replaced by inert classes.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import TeacherError, brief


class Inert:
    """Replaces an object of the training history. Stores nothing and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


HISTORY = [
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Int64DType",
    "numpy.dtypes.Int32DType",
    "_codecs.encode",
]


def load_plain(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Read the dict in a checkpoint. Raise TeacherError where it is unreadable or contains objects that run code.

    mapped: leave the tensors in the file until they are used, which torch's older file format does not allow.
    """
    stand_ins = [(type("Inert", (Inert,), {}), name) for name in HISTORY]
    try:
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "global" in line.lower()), "not a checkpoint")
        raise TeacherError(
            f"{path}: not loaded, because it is not a plain weight file: {reason.strip()[:200]}"
        ) from error
    except Exception as error:  # torch.load of a corrupted file can raise any exception
        raise TeacherError(f"{path}: cannot be read as a checkpoint: {brief(error)}") from error
    if not isinstance(content, dict):
        raise TeacherError(f"{path}: expected a dict with a state_dict, found {type(content).__name__}")
    return content


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (state dict, meta) of a checkpoint or of a bare state dict. Raise TeacherError where it cannot be read."""
    content = load_plain(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise TeacherError(f"{path}: expected a dict as state_dict, found {type(state).__name__}")
    state = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    meta = content.get("meta")
    return state, meta if isinstance(meta, dict) else {}


def load_strict(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights. Raise TeacherError for a missing or unexpected key or a wrong shape; mmengine only warns.

    The counter num_batches_tracked may be missing, because old checkpoints lack it and inference does not use it.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    misshapen = [k for k in state if k in own and own[k].shape != state[k].shape]
    if missing or unexpected or misshapen:
        parts = []
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
            if keys:
                parts.append(f"{len(keys)} keys {what} (first: {keys[0]})")
        raise TeacherError(f"{path}: does not fit the teacher's config: {', '.join(parts)}")
    model.load_state_dict(state, strict=False)


def classes_of(meta: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the class names of a checkpoint of mmdet 3 (dataset_meta) or mmdet 2 (CLASSES); None if it has none."""
    dataset_meta = {str(k).lower(): v for k, v in (meta.get("dataset_meta") or {}).items()}
    found = dataset_meta.get("classes") or meta.get("CLASSES")
    return tuple(found) if isinstance(found, list | tuple) else None
