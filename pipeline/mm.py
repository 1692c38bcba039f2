"""`pipeline.mmdet_compat.registry` by its public name: import it before mmdet in scripts of your own."""

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
