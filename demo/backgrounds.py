"""Procedural cluttered backgrounds: gradients, stripes, checks, noise, blobs and polygons.

Every function draws only from the generator that it receives. Textures are generated small and then enlarged, which is
many times faster than per-pixel noise and looks more like a texture.
"""

from __future__ import annotations

import cv2
import numpy as np


def _colour(rng: np.random.Generator) -> tuple[float, float, float]:
    blue, green, red = rng.integers(0, 256, 3).tolist()
    return blue, green, red


def _enlarge(small: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    method = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(3)]
    return cv2.resize(small, (width, height), interpolation=method)


def gradient(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Return a smooth blend of four corner colours."""
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    return cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)


def noise(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Return coloured noise of a random coarseness around a random colour."""
    cell = int(rng.integers(3, 40))
    shape = (height // cell + 2, width // cell + 2, 3)
    spread = int(rng.integers(20, 120))
    small = rng.integers(-spread, spread + 1, shape) + rng.integers(40, 216, 3)
    return _enlarge(np.clip(small, 0, 255).astype(np.uint8), width, height, rng)


def _two_colours(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Convert (H, W) of 0 and 1 to (H, W, 3) in two random colours."""
    table = np.zeros((256, 1, 3), np.uint8)
    table[:2, 0] = rng.integers(0, 256, (2, 3))
    mask = mask.astype(np.uint8)
    return cv2.LUT(cv2.merge([mask, mask, mask]), table)


def stripes(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Return slanted stripes of two colours. Phases are fixed-point, with 1024 steps per period."""
    step = (rng.uniform(-1.0, 1.0, 2) / rng.uniform(8.0, 60.0) * 1024).astype(np.int32)
    y, x = np.arange(height, dtype=np.int32), np.arange(width, dtype=np.int32)
    phase = np.add.outer(step[0] * y, step[1] * x)
    return _two_colours((phase & 1023) < rng.integers(256, 768), rng)


def checks(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Return a chequered pattern of two colours."""
    cell = int(rng.integers(8, 50))
    rows, columns = (np.arange(n) // cell % 2 == 0 for n in (height, width))
    return _two_colours(np.logical_xor.outer(rows, columns), rng)


GROUNDS = (gradient, noise, noise, stripes, checks)


def _polygon(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    centre = rng.uniform(0.0, 1.0, 2) * (width, height)
    corners = int(rng.integers(3, 7))
    angles = np.sort(rng.uniform(0.0, 2 * np.pi, corners))
    radii = rng.uniform(0.3, 1.0, corners) * rng.uniform(8.0, 80.0)
    return (centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]).astype(np.int32)


def clutter(image: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Draw ``count`` random shapes (polygons, ellipses, rectangles, lines) into ``image``, in place."""
    height, width = image.shape[:2]
    for _ in range(count):
        kind = rng.integers(4)
        colour = _colour(rng)
        x, y = (int(v) for v in rng.uniform(0.0, 1.0, 2) * (width, height))
        a, b = (int(v) for v in rng.integers(3, 60, 2))
        thickness = -1 if rng.random() < 0.6 else int(rng.integers(1, 5))
        if kind == 0:
            cv2.fillPoly(image, [_polygon(rng, width, height)], colour, cv2.LINE_AA)
        elif kind == 1:
            tilt = float(rng.uniform(0, 180))
            cv2.ellipse(image, (x, y), (a, b), tilt, 0, 360, colour, thickness, cv2.LINE_AA)
        elif kind == 2:
            cv2.rectangle(image, (x, y), (x + a, y + b), colour, thickness)
        else:
            end = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
            cv2.line(image, (x, y), end, colour, int(rng.integers(1, 6)), cv2.LINE_AA)


def background(width: int, height: int, rng: np.random.Generator, shapes: int = 12) -> np.ndarray:
    """Return a cluttered background, (height, width, 3) uint8 BGR, with up to ``shapes`` drawn shapes."""
    image = GROUNDS[rng.integers(len(GROUNDS))](width, height, rng)
    if rng.random() < 0.5:
        other = GROUNDS[rng.integers(len(GROUNDS))](width, height, rng)
        image = cv2.addWeighted(image, 0.6, other, 0.4, 0.0)
    image = np.ascontiguousarray(image)
    clutter(image, int(rng.integers(0, shapes + 1)), rng)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 2.5)))
    return image
