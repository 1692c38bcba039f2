"""The one door to mmdet: the stand-in for mmcv's compiled ops goes in first, then the registries are filled.

Import mmdet, mmcv and mmengine names from here or after this module.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cv2

from pipeline.mmdet_compat.ops.stand_in import install

OPS = install()  # 'compiled', 'torchvision' or 'torch'

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    # The plain mmcv wheel warns once for each op that the five detector pairs do not need; optional data sets print.
    warnings.simplefilter("ignore")
    from mmdet.registry import DATASETS, METRICS, MODELS, TRANSFORMS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config, ConfigDict

    register_all_modules(init_default_scope=True)

from pipeline.errors import ConfigError, brief  # noqa: E402

# Loader workers are forked, and a child of a process that has used OpenCV's threads may wait for them for ever.
cv2.setNumThreads(0)

__all__ = ["DATASETS", "METRICS", "MODELS", "OPS", "TRANSFORMS", "Config", "ConfigDict", "build", "config_errors"]


@contextlib.contextmanager
def config_errors(what: str) -> Iterator[None]:
    """A user's mistake in something that is built from a config, in one line: ConfigError naming `what`."""
    try:
        yield
    except (TypeError, KeyError, AssertionError, ValueError, AttributeError, ImportError, FileNotFoundError) as error:
        raise ConfigError(f"{what}: cannot be built from the config: {brief(error)}") from error


def build(registry: Any, cfg: Any, what: str) -> Any:
    """registry.build; raises ConfigError naming `what`."""
    with config_errors(what):
        return registry.build(cfg)


def plain(value: Any) -> Any:
    """Config values as JSON types (tuples become lists), without entries that only say where files are."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if k not in ("backend_args", "file_client_args")}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Callable):  # type: ignore[arg-type]
        return getattr(value, "__name__", str(value))
    return value
