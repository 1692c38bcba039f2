"""`export`: decoded arrays of a view and their pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cache.cache import Cache
from pipeline.errors import CacheError
from pipeline.tools.export import decode_view, export_view, find_view, paint_components, paint_sum


@pytest.mark.parametrize("codec", ["frs", "lossless"])
def test_export(made: dict[str, Path], tmp_path: Path, codec: str) -> None:
    cache = Cache(made[codec].parent / "cache")
    for view in (0, 1):
        written = export_view(str(cache.root), 104, view, tmp_path / str(view))
        record, output = decode_view(cache, find_view(cache, 104, view))
        assert (record.image_id, record.view, len(written)) == (104, view, 31)
        for n in range(5):
            for what, levels in (("features", output.features), ("scores", output.scores), ("frs", output.frs)):
                stored = np.load(tmp_path / str(view) / f"{what}_{n}.npy")
                np.testing.assert_array_equal(stored, levels[n][0].numpy())
                with Image.open(tmp_path / str(view) / f"{what}_{n}.png") as picture:
                    assert picture.size == record.shape[::-1]
        assert json.loads((tmp_path / str(view) / "view.json").read_text())["view"] == view
    frs = np.load(tmp_path / "0/frs_0.npy")
    scores = np.load(tmp_path / "0/scores_0.npy")
    difference = np.abs(frs - scores.max(axis=0))  # the scores are stored more coarsely than the map
    assert difference.max() == 0 if codec == "lossless" else difference.mean() < 0.1
    with Image.open(tmp_path / "0/frs_0.png") as picture:
        brightest = np.asarray(picture).sum(axis=2)
    y, x = np.unravel_index(brightest.argmax(), brightest.shape)
    assert frs[y // 8, x // 8] == frs.max()
    with pytest.raises(CacheError, match=r"image 104 has no view 2, only \[0, 1\]"):
        export_view(str(cache.root), 104, 2, tmp_path)
    with pytest.raises(CacheError, match="image 7 is in no complete pass; found images 100, 101"):
        export_view(str(cache.root), 7, 0, tmp_path)


def test_values_near_the_largest_are_painted() -> None:
    """Their squares are infinite in float32, for which numpy finds no principal components."""
    values = np.zeros((6, 4, 5), np.float32)
    values[0, 1, 2], values[3] = 3e38, -3e38
    assert paint_components(values).shape == paint_sum(values).shape == (4, 5, 3)
