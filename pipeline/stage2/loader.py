"""Read and check `train_dataloader`: torch gets some keys, the stream replaces some, all others are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from pipeline.data.stream import LoaderOptions
from pipeline.errors import ConfigError, StudentError, brief
from pipeline.fields import read_settings
from pipeline.mmdet_compat.registry import type_name

WHERE = "train_dataloader"
OPTIONS = tuple(one.name for one in fields(LoaderOptions))
READ_ELSEWHERE = ("dataset", "batch_size", "sampler", "batch_sampler")
# Values that ask for what the stream does anyway. None is always one of them.
NO_EFFECT = {"drop_last": False, "pin_memory_device": "", "in_order": True}
# Samplers of mmdet's own configs. The stream replaces them: it shuffles and keeps one orientation per batch.
STOCK_SAMPLERS = {"sampler": {"DefaultSampler", "InfiniteSampler"}, "batch_sampler": {"AspectRatioBatchSampler"}}
STOCK_SETTINGS = {"shuffle": True, "drop_last": False, "round_up": True}


def read_loader(loader: Mapping[str, Any]) -> LoaderOptions:
    """Return the options of the train loader. Raise ConfigError for a key or value that would have no effect."""
    for key, stock in STOCK_SAMPLERS.items():
        _check_sampler(f"{WHERE}.{key}", loader.get(key) or {}, stock)
    for key, value in loader.items():
        known = key in OPTIONS or key in READ_ELSEWHERE
        if not known and value is not None and NO_EFFECT.get(key) != value:
            raise ConfigError(f"{WHERE}.{key}: has no effect in stage 2, found {value!r:.80}; remove it")
    options = read_settings(LoaderOptions, {key: loader[key] for key in OPTIONS if key in loader}, WHERE)
    for key in ("persistent_workers", "prefetch_factor", "timeout"):
        if not options.num_workers and getattr(options, key):
            raise ConfigError(
                f"{WHERE}.{key}={getattr(options, key)}: needs num_workers above 0, found 0; remove it, or set "
                "num_workers"
            )
    return options


def read_batch_size(loader: Mapping[str, Any]) -> int:
    """Return the samples of a batch of one rank. Raise ConfigError where it is missing or invalid."""
    size = loader.get("batch_size")
    if type(size) is not int or size < 1:
        raise ConfigError(f"{WHERE}.batch_size: expected an integer of at least 1, found {size!r}")
    return size


def _check_sampler(where: str, value: Any, stock: set[str]) -> None:
    """Raise ConfigError for a setting that chooses samples, because the stream does that."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a dict, found {value!r}")
    name = type_name(value["type"]) if value.get("type") is not None else None
    if name is not None and name not in stock:
        raise ConfigError(
            f"{where}: {name} cannot choose the samples of a cache, because an epoch shows each image equally often; "
            f"expected none or one of {sorted(stock)}, as in dict(_delete_=True, type={min(stock)!r})"
        )
    for key, setting in value.items():
        if key not in ("type", "_scope_") and setting is not None and STOCK_SETTINGS.get(key) != setting:
            raise ConfigError(f"{where}.{key}: has no effect in stage 2, found {setting!r}; remove it")


@contextmanager
def loader_errors() -> Iterator[None]:
    """Raise StudentError where torch reports that a worker of the train loader was slow or ended."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if text.startswith("DataLoader timed out"):
            raise StudentError(
                f"{WHERE}.timeout: {text.rstrip('.')}; increase it, or check the disk. Rerun with --resume"
            ) from error
        if text.startswith("DataLoader worker"):
            raise StudentError(
                f"{WHERE}: {brief(error)}; if memory is short, reduce num_workers. Rerun with --resume"
            ) from error
        raise
