"""Start a shard of any format version."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.stage1 import version1, version2
from pipeline.stage1.target import NewShard, ShardTarget

NEW: dict[int, Callable[[ShardTarget], NewShard]] = {1: version1.new_shard, 2: version2.SpooledShard}


def new_shard(target: ShardTarget) -> NewShard:
    """Return an empty shard."""
    return NEW[target.version](target)
