"""Load weights into a detector with every key checked, whatever wrapper or old names they were saved with.

mmdet and mmcv convert old names while they load (`_load_from_state_dict`). A file is therefore judged by the keys that
`load_state_dict` reports, not by its own keys.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import TeacherError, brief

COUNTER = "num_batches_tracked"  # old checkpoints lack it, and inference does not use it
OFFSET = re.compile(r"_offset\.(weight|bias)$")
PREPROCESSOR = "data_preprocessor."  # saved by early versions of mmdet 3; the config has the same values
TWO_STAGE_1X = "; mmdet's tools/model_converters/upgrade_model_version.py converts two-stage detectors of mmdet 1.x"


@dataclass(frozen=True)
class Report:
    """The keys that did not fit when a state dict was loaded."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    def __str__(self) -> str:
        named = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshapen}
        parts = [f"{len(keys)} keys {what} (first: {keys[0]})" for what, keys in named.items() if keys]
        old = any(k.startswith("roi_head.") for k in self.missing) and any(
            k.startswith("bbox_head.") for k in self.unexpected
        )
        return ", ".join(parts) + (TWO_STAGE_1X if old and parts else "")


def load_strict(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights. Raise TeacherError for a missing or unexpected key or a wrong shape; mmengine only warns."""
    found = str(_load(model, own_part(model, state, path), path))
    if found:
        raise TeacherError(f"{path}: does not fit the teacher's config: {found}")


def load_backbone(backbone: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load the weights of a backbone from a file of it or of a whole detector. Other weights are ignored.

    Raise TeacherError for a missing key or a wrong shape.
    """
    found = _load(backbone, own_part(backbone, state, path), path)
    if found.missing or found.misshapen:
        raise TeacherError(f"{path}: does not fit the teacher's backbone: {Report(found.missing, [], found.misshapen)}")


def matching(model: nn.Module, state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], Report]:
    """Return the weights that fit a model, under its own names, and what did not fit. The model keeps its weights."""
    own = model.state_dict()
    before = {key: value.clone() for key, value in own.items()}
    try:
        report = _load(model, own_part(model, state, path), path)
        left = {*report.missing, *report.misshapen}
        loaded = {key: value.clone() for key, value in own.items() if key not in left}
    finally:
        with torch.no_grad():
            for key, value in before.items():
                own[key].copy_(value)
    return loaded, report


def own_part(model: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the part of a state dict that was saved for this model, without prefixes and averaged copies.

    Prefixes are those of wrappers: module., teacher., student., architecture., model. and any other. Raise TeacherError
    where two parts fit equally well. mmdet 2's EMA hooks keep copies beside the weights (`ema_backbone_conv1_weight`).
    They swap both at the end of an epoch, so the plain names of a checkpoint have the averaged weights.
    """
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    prefix = find_prefix(shapes, state, path)
    inner = {_offset(k.removeprefix(prefix), shapes): v for k, v in state.items() if k.startswith(prefix)}
    copies = {f"ema_{key.replace('.', '_')}" for key in inner}
    own = OrderedDict((k, v) for k, v in inner.items() if k not in copies and not k.startswith(PREPROCESSOR))
    metadata: dict[Any, Any] = getattr(state, "_metadata", {})
    own._metadata = {  # type: ignore[attr-defined]
        f"{module}.".removeprefix(prefix)[:-1]: entry
        for module, entry in metadata.items()
        if f"{module}.".startswith(prefix) and isinstance(entry, dict)
    }
    return own


def _offset(key: str, names: Collection[str]) -> str:
    """Convert the old name of a deformable convolution's offsets, `conv2_offset.weight`.

    mmcv has this conversion too, but since then torch shows a module only the keys below its own name.
    """
    new = OFFSET.sub(r".conv_offset.\1", key)
    return new if key not in names and new in names else key


def find_prefix(shapes: dict[str, tuple[int, ...]], state: dict[str, Tensor], path: Path) -> str:
    """Return the prefix under which most names and shapes of a model are found, and the fewest other keys."""
    hits: dict[str, int] = {}
    for key, value in state.items():
        for prefix in _prefixes(key):
            if key[len(prefix) :] in shapes:
                hits[prefix] = hits.get(prefix, 0) + (shapes[key[len(prefix) :]] == tuple(value.shape))
                break
    if not hits:
        return ""
    ranks = {p: (count, -sum(p != "" and key.startswith(p) for key in state)) for p, count in hits.items()}
    best = sorted(prefix for prefix, rank in ranks.items() if rank == max(ranks.values()))
    parts = [{k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in best]
    if "" in best or hits[best[0]] == 0:
        return "" if "" in hits else best[0]
    if any(part.keys() != parts[0].keys() or not all(map(_same, part.values(), parts[0].values())) for part in parts):
        raise TeacherError(
            f"{path}: contains these weights more than once, under {' and '.join(best)}; save the part to use in a "
            "file of its own"
        )
    return best[0]


def _prefixes(key: str) -> Iterator[str]:
    yield ""
    yield from (key[: dot.end()] for dot in re.finditer(r"\.", key))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _load(model: nn.Module, state: dict[str, Tensor], path: Path) -> Report:
    """Load what fits, and return what torch reported after mmdet's conversions of old names."""
    for key, value in model.state_dict().items():
        if key in state and value.is_floating_point() and not state[key].is_floating_point():
            raise TeacherError(f"{path}: {key} is {state[key].dtype}; expected floating-point weights")
    reported: list[Any] = []
    hook = model.register_load_state_dict_post_hook(lambda _, keys: reported.append(keys))
    misshapen: list[str] = []
    try:
        model.load_state_dict(state, strict=False)
    except Exception as error:  # a module's own conversion can raise any exception
        misshapen = re.findall(r"size mismatch for (\S+):", str(error))
        if not (misshapen and reported):
            raise TeacherError(f"{path}: cannot be loaded: {brief(error)}") from error
    finally:
        hook.remove()
    missing = [key for key in reported[0].missing_keys if not key.endswith(COUNTER)]
    return Report(missing, list(reported[0].unexpected_keys), misshapen)
