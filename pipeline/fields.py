"""Settings as frozen dataclasses, read from the dicts of a config or of codec.json and checked once.

The annotation of a field is the type of its value. Its metadata can have these keys:

    at_least, at_most, above   the range of a number
    choices                    the allowed values, or a function that returns them
    check                      a function that returns None for a valid value, otherwise the text for "expected ..."
    parse                      a function that checks a dict and makes the field's value from it
    key                        the name in the dict, if it differs from the field's name
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pipeline.errors import ConfigError

T = TypeVar("T")


def key_of(one: Field[Any]) -> str:
    """Return the name of a field in the config or file."""
    return one.metadata.get("key") or one.name


def read_settings(kind: type[T], values: Any, where: str, ignore_unknown: bool = False) -> T:
    """Make a settings dataclass from plain values. Raise ConfigError that names the invalid key as `where`.key."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a dict, found {type(values).__name__}")
    known = {key_of(one): one for one in fields(kind)}  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known]
    if unknown and not ignore_unknown:
        raise ConfigError(f"{where}.{unknown[0]}: unknown key; {suggest(str(unknown[0]), known)}")
    hints, found = get_type_hints(kind), {}
    for key, one in known.items():
        if key in values:
            found[one.name] = _read(f"{where}.{key}", hints[one.name], one.metadata, values[key])
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ConfigError(f"{where}.{key}: missing; set it in the config")
    return kind(**found)


def _read(where: str, hint: Any, rules: Mapping[str, Any], value: Any) -> Any:
    """Check one value, then parse it. A field with `parse` is a dict in the config."""
    parse = rules.get("parse")
    expected = _wrong_type(dict if parse else hint, value)
    if expected is None and value is not None:
        expected = _out_of_range(rules, value)
    if expected is not None:
        raise ConfigError(f"{where}: expected {expected}, found {value!r:.120}")
    return parse(value) if parse else value


def _wrong_type(hint: Any, value: Any) -> str | None:
    """Return the expected type if the value has another one. An int is accepted as a float; a bool is not a number."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    types = [get_origin(part) or part for part in parts]
    allowed = (*types, int) if float in types else tuple(types)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in types):
        return " | ".join("None" if one is NoneType else one.__name__ for one in types)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:  # plan.json with it could not be read
        return "a whole number of at most 64 bits"
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:  # NaN as well
        return "a finite number"
    return None


def _out_of_range(rules: Mapping[str, Any], value: Any) -> str | None:
    """Return the expected values if a value of the right type is not allowed."""
    low, high, above = rules.get("at_least"), rules.get("at_most"), rules.get("above")
    choices = rules.get("choices")
    allowed = choices() if callable(choices) else choices
    if allowed is not None and value not in allowed:
        return f"one of {tuple(allowed)}"
    if low is not None and high is not None and not low <= value <= high:
        return f"a number from {low} to {high}"
    if low is not None and value < low:
        return f"at least {low}"
    if above is not None and value <= above:
        return f"a number above {above}"
    check = rules.get("check")
    return check(value) if check else None


def suggest(name: str, known: Collection[str]) -> str:
    """Suggest the known key closest to a misspelled one, or list all keys if they are few."""
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known keys: {', '.join(sorted(known))}" if len(known) <= 12 else "no key of the config has a similar name"
