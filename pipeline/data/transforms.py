"""The transforms that can be replayed, and the finite choices of each."""

from __future__ import annotations

from typing import Any

from pipeline.errors import ViewError
from pipeline.mmdet_compat.registry import type_name

FIXED = {"LoadAnnotations", "Resize", "FixShapeResize", "Pad", "FilterAnnotations"}
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
    "RandomCrop",
    "MinIoURandomCrop",
    "RandomCenterCropPad",
}
WRAPPERS = {"RandomChoice", "RandomApply"}  # they draw which of their inner transforms run
MIXING = {"Mosaic", "CachedMosaic", "MixUp", "CachedMixUp", "CopyPaste", "InstaBoost"}
BY_BOXES = {"FilterAnnotations", "RandomCrop", "MinIoURandomCrop", "RandomCenterCropPad"}  # the boxes decide the result
# They keep an image's size; a wrapper does if the transforms inside it do.
SAME_SIZE = {"LoadAnnotations", "RandomFlip", "PhotoMetricDistortion", "YOLOXHSVRandomAug", "CutOut", "RandomErasing"}
SAME_SIZE |= {"RandomShift", *WRAPPERS}
LOAD, PACK = "LoadImageFromFile", "PackDetInputs"


def all_names(transforms: Any) -> list[str]:
    """Return the names of transforms and of all transforms inside wrappers, in the order of the config."""
    if isinstance(transforms, list | tuple):
        return [name for transform in transforms for name in all_names(transform)]
    name = type_name(transforms.get("type", "?")) if isinstance(transforms, dict) else str(transforms)
    return [name, *(all_names(transforms.get("transforms", [])) if name in WRAPPERS else [])]


def require_replayable(pipeline: list[dict[str, Any]]) -> None:
    """Raise ViewError for a transform that mixes images or is not known to replay, and for a pipeline without ends."""
    names = [type_name(t.get("type", "?")) for t in pipeline]
    known = FIXED | DRAWN | WRAPPERS
    for name in all_names(pipeline):
        if name in MIXING:
            raise ViewError(
                f"transform {name}: mixes images, so its views cannot be cached; {without_mixing(names, name)}"
            )
        if name not in known | {LOAD, PACK}:
            raise ViewError(f"transform {name}: not known to replay exactly; use some of {sorted(known)}")
    if len(names) < 2 or names[0] != LOAD or names[-1] != PACK or {LOAD, PACK} & set(all_names(pipeline[1:-1])):
        raise ViewError(f"data pipeline: expected LoadImageFromFile ... PackDetInputs, found {names}")


def without_mixing(names: list[str], found: str | None = None) -> str:
    """Suggest what remains of a pipeline without the transforms that mix images. `found`: one, maybe in a wrapper."""
    mixing = [name for name in names if name in MIXING]
    if found is not None and found not in mixing:
        return f"remove {found} from the wrapper that holds it"
    # In mmdet's pipelines, RandomAffine cuts the middle out of a mosaic, which is twice as large as the image.
    rest = [name for name in names if name in FIXED | DRAWN and not ("Mosaic" in mixing and name == "RandomAffine")]
    rest = [LOAD, *(["LoadAnnotations"] if "LoadAnnotations" not in rest else []), *rest, PACK]
    return f"remove {' and '.join(dict.fromkeys(mixing))}, for example {' -> '.join(rest)}"


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
