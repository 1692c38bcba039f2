"""From images to batches: annotation files, views and their replay, shard planning, schedule, stream."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `Images` when a script uses it: mmdet comes along, which readers of annotation files do not need."""
    if name != "Images":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.data.images import Images

    return Images
