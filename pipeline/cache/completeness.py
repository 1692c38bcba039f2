"""Compare the passes of a cache with those that it must have.

plan.json has no number of passes, because a cache can grow. Stage 1 writes summary.json last, with the number of passes
that were complete then. A cache without it must have one pass for each view of its rule.
"""

from __future__ import annotations

from pipeline.cache.cache import Cache
from pipeline.cache.layout import known_passes
from pipeline.errors import CacheError
from pipeline.storage.place import AGAIN, remedy


def count_expected_passes(cache: Cache, wanted: int = 0) -> int | None:
    """Return how many passes the complete cache has; None if that is unknown.

    `wanted`: the least number, as a config knows it. A pass that was started counts too. The number is unknown if
    transforms draw from ranges and neither summary.json nor `wanted` is there.
    """
    views = cache.recipe["views"]["finite"]
    planned = max(known_passes(cache.root), wanted) or views
    if planned is None:
        return None
    number = max([planned, *(number + 1 for number in (*cache.passes(), *cache.incomplete()))])
    return number if views is None else min(number, views)


def describe_passes(complete: int, expected: int | None) -> str:
    """Return 'n of V passes'."""
    return f"{complete} of {'an unknown number of' if expected is None else expected} passes"


def find_missing_passes(cache: Cache, wanted: int = 0) -> CacheError | None:
    """Return the error of a cache that lacks passes; None if it is complete. `wanted`: see `count_expected_passes`."""
    complete, expected = cache.passes(), count_expected_passes(cache, wanted)
    todo = remedy(cache.root, AGAIN)
    if expected is None:
        found = describe_passes(len(complete), None)
        return CacheError(f"{cache.root}: {found}, because summary.json is missing; {todo}, or add --config C")
    known = {number for number in complete if number < expected}
    missing = expected - len(known)
    if not missing:
        return None
    first = next(number for number in range(expected) if number not in known)
    state = "has no manifest.json" if first in cache.incomplete() else "is missing"
    more = f" (and {missing - 1} more)" if missing > 1 else ""
    found = describe_passes(len(known), expected)
    return CacheError(f"{cache.root}: {found} are complete: pass-{first} {state}{more}; {todo}")


def find_foreign_passes(cache: Cache) -> CacheError | None:
    """Return the error of a cache that has a pass which its rule does not make; None if it has none."""
    views = cache.recipe["views"]["finite"]
    foreign = [number for number in cache.passes() if views is not None and number >= views]
    if not foreign:
        return None
    return CacheError(
        f"{cache.root}/pass-{foreign[0]}: not a pass of this cache, because an image has {views} views; move it away"
    )
