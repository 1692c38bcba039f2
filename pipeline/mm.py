"""Public name of `pipeline.mmdet_compat.registry`. In your own scripts, import it before mmdet."""

from pipeline.mmdet_compat.registry import (
    DATASETS,
    METRICS,
    MODELS,
    OPS,
    TRANSFORMS,
    Config,
    ConfigDict,
    build,
    config_errors,
    plain,
)

__all__ = [
    "DATASETS",
    "METRICS",
    "MODELS",
    "OPS",
    "TRANSFORMS",
    "Config",
    "ConfigDict",
    "build",
    "config_errors",
    "plain",
]
