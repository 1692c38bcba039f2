"""Draw FRS maps over the images that the teacher saw, as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.records import ViewRecord
from pipeline.tools.export import HEAT, paint_heat, resize_to_view

SIDE = 360  # longest side of a picture in pixels


def data_uri(pixels: np.ndarray) -> str:
    """Encode (H, W, 3) uint8 as a JPEG in a data URI."""
    image, stream = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(stream, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def shrink(record: ViewRecord) -> ViewRecord:
    """Return a record whose view is at most twice as large as its picture. Nothing of the view itself is drawn."""
    factor = max(1.0, max(record.shape) / (2 * SIDE))
    sides = (tuple(max(1, round(side / factor)) for side in pair) for pair in (record.shape, record.pad_shape))
    shape, pad_shape = sides
    return replace(record, shape=shape, pad_shape=pad_shape)  # type: ignore[arg-type]


def render_background(record: ViewRecord, pixels: Tensor | None) -> np.ndarray:
    """Return (H, W, 3) RGB of a view: its replayed pixels (3, H, W) BGR, or its 8 x 8 thumbnail, enlarged."""
    if pixels is not None:
        return np.ascontiguousarray(pixels.numpy()[::-1].transpose(1, 2, 0))
    small = Image.fromarray(np.ascontiguousarray(record.thumbnail[..., ::-1]))
    return np.asarray(small.resize(record.shape[::-1], Image.Resampling.BICUBIC))


def blend_map(base: np.ndarray, frs: np.ndarray, record: ViewRecord) -> np.ndarray:
    """Blend the map (H_l, W_l) of one level, relative to its largest value, over the view in grey."""
    grey = np.repeat(base.mean(axis=2, keepdims=True), 3, axis=2)
    strength = np.sqrt(frs / max(float(frs.max()), 1e-30))
    weight = resize_to_view(strength, record)[..., None] * 0.85
    return (grey * 0.8 * (1 - weight) + resize_to_view(paint_heat(strength), record) * weight).astype(np.uint8)


def legend_colours() -> str:
    """Return the colours of `blend_map` from 0 to the largest value, for a legend in CSS."""
    return ", ".join(f"rgb{stop}" for stop in HEAT)
