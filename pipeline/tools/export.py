"""Export one view of a cache: .npy files for the values, .png files for viewing."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import write_report
from pipeline.cache.completeness import find_missing_passes
from pipeline.errors import CacheError, CorruptCache
from pipeline.records import RECORD_COLUMNS, SampleRef, TeacherOutput, ViewRecord
from pipeline.storage.files import atomic_file, discard

# From dark violet through magenta and orange to pale yellow. The lightness rises evenly, so grey prints are readable.
HEAT = ((0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


def find_view(cache: Cache, image_id: int, view: int) -> SampleRef:
    """Find a view in a cache. Raise CacheError, which lists the views of the image, where it is missing."""
    refs = [ref for number in cache.passes() for shard in cache.references(number) for ref in shard]
    found = {ref.view: ref for ref in refs if ref.image_id == image_id}
    if view in found:
        return found[view]
    incomplete = find_missing_passes(cache)
    if incomplete is not None:  # the view may be in a pass that is missing
        raise incomplete
    if found:
        raise CacheError(f"{cache.root}: image {image_id} has no view {view}, only {sorted(found)}; change --view")
    some_ids = ", ".join(str(image) for image in sorted({ref.image_id for ref in refs})[:5])
    raise CacheError(f"{cache.root}: image {image_id} is in no complete pass; found images {some_ids or 'none'}, ...")


def decode_view(cache: Cache, ref: SampleRef) -> tuple[ViewRecord, TeacherOutput]:
    """Decode one view on the CPU. Return its record and the teacher's output, a batch of one. Raise CorruptCache."""
    from pipeline.codecs.group import open_codec
    from pipeline.codecs.packing import stack

    codec = open_codec(cache)
    record, levels, stored = cache.shard(ref.cache_pass, ref.shard).view(ref.index, codec)
    output = codec.decode(stack([stored], [levels]))
    if output.unsound() is not None:
        raise CorruptCache(
            f"{cache.root}: image {ref.image_id}, view {ref.view} decodes to NaN or infinity; run verify"
        )
    return record, output


def export_view(root: str, image_id: int, view: int, out: Path) -> list[Path]:
    """Write features (C, H, W), scores (K, H, W; if cached) and FRS map (H, W) of every level. Return the paths.

    Pictures have the size of the view. They show the map, the sum of the scores over classes, and the three principal
    components of the features as red, green and blue. If the cache stores image files, that of the image is written
    too. Raise CacheError where the view is missing.
    """
    cache = Cache(root)
    record, output = decode_view(cache, find_view(cache, image_id, view))
    discard(out / "view.json")  # it describes the files, so it is there only if all of them are
    written = []
    tensors = (
        ("features", output.features, paint_components),
        ("scores", output.scores, paint_sum),
        ("frs", output.frs, paint_heat),
    )
    for what, levels, paint in tensors:
        for number, level in enumerate(levels):
            values = level[0].numpy()
            picture = Image.fromarray(resize_to_view(paint(values), record))
            written += [
                write_whole(out / f"{what}_{number}.npy", partial(np.save, arr=values)),
                write_whole(out / f"{what}_{number}.png", partial(picture.save, format="PNG")),
            ]
    if cache.image_manifest() is not None:
        files = cache.stored_images()
        name, content = files.name(image_id), files.read(image_id)
        written.append(write_whole(out / f"image{PurePath(name).suffix}", lambda file: file.write(content)))
    write_report(out / "view.json", describe_view(cache, record))
    return [*written, out / "view.json"]


def write_whole(path: Path, encode: Callable[[io.BytesIO], Any]) -> Path:
    """Write a file completely or, if the disk is full, not at all. Return its path."""
    content = io.BytesIO()
    encode(content)
    with atomic_file(path) as file:
        file.write(content.getvalue())
    return path


def describe_view(cache: Cache, record: ViewRecord) -> dict[str, Any]:
    """Return the content of view.json: the view's record and the cache that the files come from."""
    row = dict(zip(RECORD_COLUMNS, (int(n) for n in record.row(()))))
    return {**row, "cache": str(cache.root), "content": cache.content(), "codec": cache.codec_manifest()["settings"]}


def paint_heat(values: np.ndarray) -> np.ndarray:
    """Colour (H, W) as (H, W, 3) uint8, from 0 to the largest value."""
    index = np.clip(values / max(float(values.max()), 1e-30), 0, 1) * (len(HEAT) - 1)
    stops = np.array(HEAT, np.float64)
    return np.stack([np.interp(index, np.arange(len(HEAT)), stops[:, c]) for c in range(3)], axis=-1).astype(np.uint8)


def paint_sum(values: np.ndarray) -> np.ndarray:
    """Colour the sum over classes of scores (K, H, W) as (H, W, 3) uint8."""
    return paint_heat(values.clip(0).sum(axis=0, dtype=np.float64))


def paint_components(values: np.ndarray) -> np.ndarray:
    """Colour the first three principal components of (C, H, W) as (H, W, 3) uint8."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= max(float(np.abs(flat).max()), 1e-30)  # their squares must be finite
    vectors = np.linalg.eigh(flat @ flat.T)[1][:, ::-1][:, :3]
    planes = np.zeros((3, flat.shape[1]))
    planes[: vectors.shape[1]] = vectors.T @ flat
    low, high = np.percentile(planes, [1, 99], axis=1, keepdims=True)
    scaled = np.clip((planes - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (scaled.T.reshape(*values.shape[1:], 3) * 255).astype(np.uint8)


def resize_to_view(picture: np.ndarray, record: ViewRecord) -> np.ndarray:
    """Resize the picture of a level to the size of the view, without padding."""
    height, width = record.pad_shape
    rows = np.arange(record.shape[0]) * picture.shape[0] // height
    columns = np.arange(record.shape[1]) * picture.shape[1] // width
    return picture[rows][:, columns]
