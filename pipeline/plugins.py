"""Extensions from other installed packages: losses and codecs that they declare as entry points."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

from pipeline.errors import ConfigError, brief

T = TypeVar("T")


def load_plugins(group: str, kind: type[T]) -> dict[str, T]:
    """Load every entry point of a group, by name. Raises ConfigError: it cannot be imported, or is no `kind`."""
    found: dict[str, T] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        try:
            value = point.load()
        except Exception as error:  # a plugin is a program: anything may go wrong inside it
            raise ConfigError(f"entry point {point.name!r} of {group}: cannot be loaded: {brief(error)}") from error
        if not isinstance(value, kind):
            raise ConfigError(f"entry point {point.name!r} of {group}: expected a {kind.__name__}, found {value!r:.80}")
        found[point.name] = value
    return found
