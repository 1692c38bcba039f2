"""The transforms that can be replayed, and the finite choices of each."""

from __future__ import annotations

from typing import Any

from pipeline.mmdet_compat.registry import type_name

FIXED = {"LoadAnnotations", "Resize", "FixShapeResize", "Pad"}
DRAWN = {
    "RandomResize",
    "RandomFlip",
    "RandomChoiceResize",
    "PhotoMetricDistortion",
    "Expand",
    "YOLOXHSVRandomAug",
    "CutOut",
    "RandomErasing",
    "RandomShift",
    "RandomAffine",
}
MIXING = {"Mosaic", "CachedMosaic", "MixUp", "CachedMixUp", "CopyPaste", "InstaBoost"}


def list_choices(transform: dict[str, Any]) -> list[dict[str, Any]] | None:
    """List the equally likely outcomes of a transform as configs without randomness; None if it draws from a range."""
    kind = type_name(transform["type"])
    if kind == "RandomChoiceResize" and isinstance(transform.get("scales"), list | tuple):
        return [{**transform, "scales": [scale]} for scale in transform["scales"]]
    if kind == "RandomFlip":
        prob, direction = transform.get("prob"), transform.get("direction", "horizontal")
        directions = direction if isinstance(direction, list | tuple) else [direction]
        if prob == 0 or (prob == 1 and len(directions) == 1):
            return [transform]
        if isinstance(prob, float) and abs(1 - prob - prob / len(directions)) < 1e-6:
            flips = [{**transform, "prob": 1.0, "direction": d} for d in directions]
            return [{**transform, "prob": 0.0, "direction": directions[0]}, *flips]
    return [transform] if kind in FIXED else None


def describe_rule(transforms: list[dict[str, Any]], options: list[list[dict[str, Any]] | None], count: int) -> str:
    """Describe the views, as '2 distinct views: resize 1333x800 x flip' or '4 seeded draws: RandomResize x flip'."""
    parts = []
    for transform, option in zip(transforms, options):
        scales = [o.get("scale") or (o.get("scales") or [None])[0] for o in option or []]
        if option and all(isinstance(scale, list | tuple) for scale in scales):
            parts.append("resize " + " or ".join("x".join(map(str, scale)) for scale in scales))
        elif type_name(transform["type"]) == "RandomFlip" and (option is None or len(option) > 1):
            parts.append("flip")
        elif option is None:
            parts.append(type_name(transform["type"]))
    what = "seeded draw" if None in options else "distinct view"
    return f"{count} {what}{'s' * (count != 1)}: {' x '.join(parts) or 'the image'}"
