"""One view of a cache as files that everything opens: .npy for numbers, .png to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.cache.cache import Cache
from pipeline.errors import CacheError
from pipeline.records import RECORD_COLUMNS, SampleRef, TeacherOutput, ViewRecord

# Dark violet over magenta and orange to pale yellow: even steps of lightness, readable without colour too.
HEAT = ((0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


def find_view(cache: Cache, image_id: int, view: int) -> SampleRef:
    """Find where a view lies. Raises CacheError: which views of this image there are."""
    refs = [ref for number in cache.passes() for shard in cache.references(number) for ref in shard]
    held = {ref.view: ref for ref in refs if ref.image_id == image_id}
    if view in held:
        return held[view]
    if held:
        raise CacheError(f"{cache.root}: image {image_id} is held in views {sorted(held)}, not {view}")
    some = ", ".join(str(image) for image in sorted({ref.image_id for ref in refs})[:5])
    raise CacheError(f"{cache.root}: no complete pass holds image {image_id}; it holds {some or 'none'}, ...")


def decode_view(cache: Cache, ref: SampleRef) -> tuple[ViewRecord, TeacherOutput]:
    """Decode one view on the CPU. Returns its record and the teacher's output, a batch of one."""
    from pipeline.codecs.group import open_codec
    from pipeline.codecs.packing import stack

    codec = open_codec(cache)
    record, levels, stored = cache.shard(ref.cache_pass, ref.shard).view(ref.index, codec.check_sample)
    return record, codec.decode(stack([stored], [levels]))


def export_view(root: str, image_id: int, view: int, out: Path) -> list[Path]:
    """Write features (C, H, W), scores (K, H, W; where kept) and FRS map (H, W) of every level; returns the paths.

    Pictures have the size of the view: the map; the sum over the scores; the features' three strongest directions as
    red, green and blue. Raises CacheError where the cache does not hold this view.
    """
    cache = Cache(root)
    record, output = decode_view(cache, find_view(cache, image_id, view))
    out.mkdir(parents=True, exist_ok=True)
    written = []
    painted = (
        ("features", output.features, paint_directions),
        ("scores", output.scores, paint_sum),
        ("frs", output.frs, paint_heat),
    )
    for what, levels, paint in painted:
        for number, level in enumerate(levels):
            values = level[0].numpy()
            written += [out / f"{what}_{number}.npy", out / f"{what}_{number}.png"]
            np.save(written[-2], values)
            Image.fromarray(resize_to_view(paint(values), record)).save(written[-1])
    written.append(out / "view.json")
    written[-1].write_text(json.dumps(describe_view(cache, record), indent=1) + "\n")
    return written


def describe_view(cache: Cache, record: ViewRecord) -> dict[str, Any]:
    """Return what view.json says about the files beside it."""
    row = dict(zip(RECORD_COLUMNS, (int(n) for n in record.row(()))))
    return {**row, "cache": str(cache.root), "content": cache.content(), "codec": cache.codec_manifest()["settings"]}


def paint_heat(values: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W, 3) uint8, from 0 to the largest value."""
    at = np.clip(values / max(float(values.max()), 1e-30), 0, 1) * (len(HEAT) - 1)
    stops = np.array(HEAT, np.float64)
    return np.stack([np.interp(at, np.arange(len(HEAT)), stops[:, c]) for c in range(3)], axis=-1).astype(np.uint8)


def paint_sum(values: np.ndarray) -> np.ndarray:
    """(K, H, W) -> (H, W, 3) uint8: the sum over the scores."""
    return paint_heat(values.clip(0).sum(axis=0))


def paint_directions(values: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (H, W, 3) uint8: the three directions in which positions differ most."""
    flat = values.reshape(len(values), -1) - values.mean(axis=(1, 2)).reshape(-1, 1)
    vectors = np.linalg.eigh(flat @ flat.T)[1][:, ::-1][:, :3]
    planes = np.zeros((3, flat.shape[1]))
    planes[: vectors.shape[1]] = vectors.T @ flat
    low, high = np.percentile(planes, [1, 99], axis=1, keepdims=True)
    scaled = np.clip((planes - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (scaled.T.reshape(*values.shape[1:], 3) * 255).astype(np.uint8)


def resize_to_view(picture: np.ndarray, record: ViewRecord) -> np.ndarray:
    """Return a level's picture at the size of the view, without its padding."""
    height, width = record.pad_shape
    rows = np.arange(record.shape[0]) * picture.shape[0] // height
    columns = np.arange(record.shape[1]) * picture.shape[1] // width
    return picture[rows][:, columns]
