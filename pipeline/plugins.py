"""Load losses and codecs that other installed packages declare as entry points."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

from pipeline.errors import ConfigError, brief

T = TypeVar("T")


def load_plugins(group: str, kind: type[T]) -> dict[str, T]:
    """Load all entry points of a group, by name. Raise ConfigError where one cannot be imported or is not a `kind`."""
    found: dict[str, T] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        try:
            value = point.load()
        except Exception as error:  # a plugin is a program, so it can raise any exception
            raise ConfigError(f"entry point {point.name!r} of {group}: cannot be loaded: {brief(error)}") from error
        if not isinstance(value, kind):
            raise ConfigError(f"entry point {point.name!r} of {group}: expected a {kind.__name__}, found {value!r:.80}")
        found[point.name] = value
    return found
