"""Import mmdet: install the replacement of mmcv's compiled ops first, then fill mmdet's registries.

Import mmdet, mmcv and mmengine names from this module, or after it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cv2

from pipeline.mmdet_compat.ops.stand_in import install
from pipeline.mmdet_compat.versions import require_mmdet
from pipeline.mmdet_compat.yapf_grammar import import_yapf

import_yapf()
require_mmdet()
OPS = install()  # 'compiled', 'torchvision' or 'torch'
MMDET = str(importlib.import_module("mmdet").__version__)

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    # The plain mmcv wheel warns for each missing op, and optional data sets print to stdout.
    warnings.simplefilter("ignore")
    from mmcv.ops import MaskedConv2d
    from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config, ConfigDict

    register_all_modules(init_default_scope=True)

from pipeline.errors import ConfigError, PipelineError, brief  # noqa: E402

# Loader workers are forked, and a fork of a process with OpenCV threads may wait for them forever.
cv2.setNumThreads(0)

__all__ = [
    "DATASETS",
    "HOOKS",
    "METRICS",
    "MMDET",
    "MODELS",
    "OPS",
    "TRANSFORMS",
    "Config",
    "ConfigDict",
    "MaskedConv2d",
    "build",
    "config_errors",
]


OWN_SCOPES = ("mmdet", "mmcv", "mmengine")  # what a bare name is looked up in


BUILD_ERRORS = (
    *(TypeError, KeyError, AssertionError, ValueError, AttributeError, ImportError, FileNotFoundError),
    *(IndexError, NotImplementedError, SyntaxError, ArithmeticError),
)


@contextlib.contextmanager
def config_errors(what: str) -> Iterator[None]:
    """Convert the exceptions of building `what` from a config to a one-line ConfigError that names it."""
    try:
        yield
    except BUILD_ERRORS as error:
        raise ConfigError(f"{what}: cannot be built from the config: {brief(error)}") from error


def build(registry: Any, cfg: Any, what: str) -> Any:
    """Build an object of a registry from a config. Raise ConfigError that names `what`."""
    with config_errors(what):
        try:
            return registry.build(cfg)
        except PipelineError:
            raise
        except (RuntimeError, OSError) as error:  # an optional package is missing, or a download failed
            raise ConfigError(f"{what}: cannot be built from the config: {brief(error)}") from error


def type_name(value: Any) -> str:
    """Return the bare name of a config's `type`: 'Resize' for 'Resize', 'mmdet.Resize' and the class itself."""
    name = value if isinstance(value, str) else getattr(value, "__name__", None) or str(value)
    return name.rpartition(".")[2]


def drop_own_scopes(value: Any) -> None:
    """Rewrite 'mmdet.Resize' to 'Resize' in a config, in place, where the scope is one of OWN_SCOPES.

    mmengine looks a scoped name up in that scope alone, where 'mmdet.LoadImageFromFile' is missing: mmcv registers it.
    """
    if isinstance(value, dict):
        kind = value.get("type")
        if isinstance(kind, str) and kind.count(".") == 1 and kind.partition(".")[0] in OWN_SCOPES:
            value["type"] = type_name(kind)
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            drop_own_scopes(part)


def plain(value: Any) -> Any:
    """Convert config values to JSON types (tuples become lists), without entries that say where files are."""
    if isinstance(value, dict):
        kept = {str(k): plain(v) for k, v in value.items() if k not in ("backend_args", "file_client_args")}
        kind = value.get("type")
        return {**kept, "type": type_name(kind)} if isinstance(kind, str) or callable(kind) else kept
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Callable):  # type: ignore[arg-type]
        return getattr(value, "__name__", str(value))
    return value
