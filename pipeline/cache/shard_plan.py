"""Which view of which image lies in which shard: decided once, before the first shard, from sizes alone.

The view of image i in pass p is v = (p + h(i)) mod V, h being `mix` below: with two views (flip or not) half of the
images are flipped in every pass. Where transforms draw from ranges, pass p holds draw p. Epoch e trains on pass
e mod V and so reads one folder from end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pipeline.records import SampleRef

MASK = (1 << 64) - 1
SAME_CLASS = 1.25  # padded areas of one shard differ at most by this factor; the difference is stored as zeros


def mix(*numbers: int) -> int:
    """64 well-mixed bits of some integers: splitmix64, chained. Part of the format: never change it."""
    state = 0
    for number in numbers:
        state = (state + (number & MASK) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def view_of(image_id: int, cache_pass: int, views: int | None) -> int:
    """The view of an image that a pass holds. views=None: the transforms draw, and pass p holds draw p."""
    return cache_pass if views is None else (cache_pass + mix(image_id)) % views


@dataclass(frozen=True)
class ShardPlan:
    """Whole teacher batches; every batch holds views (image_id, view) of one padded shape (H, W)."""

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
        """The same shard with some images left out (quarantine)."""
        kept = ((pad, tuple(s for s in batch if s[0] not in images)) for pad, batch in self.batches)
        return ShardPlan(tuple((pad, batch) for pad, batch in kept if batch))


def plan_pass(
    images: Iterable[int], cache_pass: int, views: int | None, pad_shape: Callable[[int, int], tuple[int, int]],
    batch_size: int, shard_samples: int, seed: int,
) -> list[ShardPlan]:  # fmt: skip
    """Sort by orientation and padded shape, shuffle inside by seed, cut into batches, then into shards.

    `pad_shape(image_id, view)` is (H, W) of the view padded on its own.
    """
    samples = []
    for image in images:
        view = view_of(image, cache_pass, views)
        samples.append((image, view, tuple(pad_shape(image, view))))
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
            turned = (width >= height) != (pad[1] >= pad[0])
            if full or turned or pad[0] * pad[1] > SAME_CLASS * height * width:
                yield ShardPlan(tuple(current))
                current = []
        current.append((pad, batch))
    if current:
        yield ShardPlan(tuple(current))


def references(shards: list[ShardPlan], cache_pass: int) -> list[list[SampleRef]]:
    """SampleRef of every planned sample, shard by shard."""
    return [
        [SampleRef(cache_pass, n, i, image, view, pad) for i, (image, view, pad) in enumerate(shard.samples)]
        for n, shard in enumerate(shards)
    ]
