"""The versions of the shard format, by number. `VERSION` is that of new caches."""

from __future__ import annotations

from pipeline.cache.shard_format import ShardFormat
from pipeline.cache.version1 import Version1
from pipeline.cache.version2 import Version2

VERSION = 2
FORMATS: dict[int, ShardFormat] = {1: Version1(), 2: Version2()}
