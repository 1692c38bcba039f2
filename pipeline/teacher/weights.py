"""Reading checkpoints without running them, and loading them without a key left over.

`torch.load(weights_only=True)` always. Ordinary mmengine checkpoints also pickle training history (HistoryBuffer,
numpy arrays, a reference to getattr): these names resolve to inert stand-ins, never to the real objects.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import TeacherError, brief


class Inert:
    """Takes the place of an object that a checkpoint wants to build; keeps nothing, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


HISTORY = [
    "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.ndarray", "numpy.dtype", "numpy.dtypes.Float64DType", "numpy.dtypes.Float32DType",
    "numpy.dtypes.Int64DType", "numpy.dtypes.Int32DType", "_codecs.encode",
]  # fmt: skip


def load_plain(path: Path) -> dict[str, Any]:
    """The dict in a checkpoint file. Raises TeacherError: unreadable, or holds objects that would run code."""
    stand_ins = [(type("Inert", (Inert,), {}), name) for name in HISTORY]
    try:
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "global" in line.lower()), "not a checkpoint")
        raise TeacherError(f"{path}: not loaded, it is no plain weight file: {reason.strip()[:200]}") from error
    except Exception as error:  # torch.load of a damaged file raises whatever its parser stumbles over
        raise TeacherError(f"{path}: cannot be read as a checkpoint: {brief(error)}") from error
    if not isinstance(content, dict):
        raise TeacherError(f"{path}: expected a dict with a state_dict, found {type(content).__name__}")
    return content


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict, meta) of a checkpoint, or of a bare state dict. Raises TeacherError as `load_plain`."""
    content = load_plain(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise TeacherError(f"{path}: its state_dict is a {type(state).__name__}, expected a dict")
    state = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    meta = content.get("meta")
    return state, meta if isinstance(meta, dict) else {}


def load_strict(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights; a missing, unexpected or misshapen key is an error (mmengine only warns).

    The counter num_batches_tracked may be absent: old checkpoints lack it and inference never reads it.
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
    """Class names a checkpoint was trained on: mmdet 3 (dataset_meta) or mmdet 2 (CLASSES)."""
    dataset_meta = {str(k).lower(): v for k, v in (meta.get("dataset_meta") or {}).items()}
    found = dataset_meta.get("classes") or meta.get("CLASSES")
    return tuple(found) if isinstance(found, list | tuple) else None
