"""A cache of another recipe is refused, and the error names the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.cache import Cache
from pipeline.errors import StaleCache


def leaves(value: Any, at: tuple = ()) -> list[tuple]:
    if isinstance(value, dict):
        return [path for key, inner in value.items() for path in leaves(inner, (*at, key))]
    return [at]


def test_any_one_field_of_the_recipe(made: dict[str, Path]) -> None:
    cache = Cache(made["frs"].parent / "cache")
    paths = leaves(cache.recipe)
    assert len(paths) > 40
    for path in paths:
        other = json.loads(json.dumps(cache.recipe))
        at = other
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = "something else"
        with pytest.raises(StaleCache) as stale:
            cache.require(other)
        line = str(stale.value)
        assert f"{'.'.join(path)}: the cache has " in line and "wants 'something else'" in line, path
    with pytest.raises(StaleCache, match="teacher weights' sha256: the cache has"):
        cache.require(cache.recipe, "0" * 64)
