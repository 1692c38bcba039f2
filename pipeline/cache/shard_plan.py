"""The shard plan of a pass: which view of which image is in which shard. It depends on image sizes, not on pixels.

The view of image i in pass p is v = (p + h(i)) mod V, where h is `mix` below. With two views (flipped or not), half of
the images are flipped in every pass. If transforms draw from ranges, pass p contains draw p. Epoch e trains on pass
e mod V, so it reads one folder from start to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pipeline.records import SampleRef

MASK = (1 << 64) - 1
SAME_CLASS = 1.25  # largest ratio of padded areas in one shard; smaller samples are padded with zeros


def mix(*numbers: int) -> int:
    """Hash integers to 64 bits: splitmix64, chained. This is part of the format and must never change."""
    state = 0
    for number in numbers:
        state = (state + (number & MASK) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def view_of(image_id: int, cache_pass: int, views: int | None) -> int:
    """Return the view of an image in a pass. views=None: transforms draw from ranges, and pass p contains draw p."""
    return cache_pass if views is None else (cache_pass + mix(image_id)) % views


@dataclass(frozen=True)
class ShardPlan:
    """The teacher batches of one shard. Each is a padded shape (H, W) and the views (image_id, view) that have it."""

    batches: tuple[tuple[tuple[int, int], tuple[tuple[int, int], ...]], ...]

    @property
    def samples(self) -> list[tuple[int, int, tuple[int, int]]]:
        return [(image, view, pad) for pad, batch in self.batches for image, view in batch]

    def to_json(self) -> list[Any]:
        return [[list(pad), [list(sample) for sample in batch]] for pad, batch in self.batches]

    @classmethod
    def from_json(cls, rows: list[Any]) -> ShardPlan:
        return cls(tuple((tuple(pad), tuple(tuple(s) for s in batch)) for pad, batch in rows))  # type: ignore[misc]

    def without(self, images: set[int]) -> ShardPlan:
        """Return the shard plan without some images (quarantine)."""
        kept = ((pad, tuple(s for s in batch if s[0] not in images)) for pad, batch in self.batches)
        return ShardPlan(tuple((pad, batch) for pad, batch in kept if batch))


def plan_pass(
    images: Iterable[int],
    cache_pass: int,
    views: int | None,
    pad_shape: Callable[[int, int], tuple[int, int] | None],
    batch_size: int,
    shard_samples: int,
    seed: int,
) -> list[ShardPlan]:
    """Make the shard plans of a pass.

    Sort the views by orientation and padded shape, shuffle views of equal shape by `seed`, and divide them into batches
    and shards. `pad_shape(image_id, view)` returns the view's padded (H, W), or None for a view that is left out.
    """
    samples = []
    for image in images:
        view = view_of(image, cache_pass, views)
        shape = pad_shape(image, view)
        if shape is not None:
            samples.append((image, view, tuple(shape)))
    samples.sort(key=lambda s: (s[2][1] >= s[2][0], s[2][0] * s[2][1], s[2], mix(seed, cache_pass, s[0])))
    batches = []
    for pad, group in groupby(samples, key=lambda s: s[2]):
        members = [(image, view) for image, view, _ in group]
        batches += [(pad, tuple(members[i : i + batch_size])) for i in range(0, len(members), batch_size)]
    return list(_shards(batches, shard_samples))


def _shards(batches: list[Any], shard_samples: int) -> Iterator[ShardPlan]:
    current: list[Any] = []
    for pad, batch in batches:
        if current:
            (height, width), _ = current[0]
            full = sum(len(b) for _, b in current) + len(batch) > shard_samples
            other_orientation = (width >= height) != (pad[1] >= pad[0])
            if full or other_orientation or pad[0] * pad[1] > SAME_CLASS * height * width:
                yield ShardPlan(tuple(current))
                current = []
        current.append((pad, batch))
    if current:
        yield ShardPlan(tuple(current))


def references(shards: list[ShardPlan], cache_pass: int) -> list[list[SampleRef]]:
    """Return the SampleRef of every planned sample, shard by shard."""
    return [
        [SampleRef(cache_pass, n, i, image, view, pad) for i, (image, view, pad) in enumerate(shard.samples)]
        for n, shard in enumerate(shards)
    ]
