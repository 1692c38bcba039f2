"""Caches written once and committed: whatever changes, these bytes must go on meaning the same numbers.

Made by `python -m tests.golden.test_golden` from the mixed cache of tests/helpers/; only together with a new VERSION.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cache.canonical import read_json
from pipeline.cache.reader import ShardReader
from pipeline.codecs.frs.settings import PROFILES
from pipeline.codecs.group import load_codec
from pipeline.codecs.packing import stack
from pipeline.errors import PipelineError
from pipeline.records import ViewRecord
from tests.helpers.symbols import to_groups

NAMES = [*(f"{profile}-{version}" for version in (1, 2) for profile in PROFILES), "lossless-2"]
GOLDEN = {name: Path(__file__).parent / name for name in NAMES}


def decoded(root: Path) -> dict[str, np.ndarray]:
    """Maps, symbols and tensors of every sample, by name."""
    codec: Any = load_codec(root, read_json(root / "codec.json"))
    reader = ShardReader(root / "pass-0/shard-00000.tar")
    found = {}
    for index in range(len(reader)):
        stored = reader.read(index)
        _, levels = ViewRecord.from_row(stored.pop("record"), stored.pop("thumbnail"))
        batch = stack([stored], [levels])
        output = codec.decode(batch)
        for level, (y, t, m) in enumerate(zip(output.features, output.scores, output.frs)):
            found |= {f"{index}/features/{level}": y[0].numpy(), f"{index}/scores/{level}": t[0].numpy()}
            found[f"{index}/frs/{level}"] = m[0].numpy()
        if codec.name == "lossless":
            continue
        maps = codec.coded_maps(batch)
        for what in ("feature", "score"):
            for level, (q,) in enumerate(codec.planes(batch, maps, what)):
                found[f"{index}/{what}_symbols/{level}"] = to_groups(q).numpy().astype(np.int32)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_golden_cache_decodes_to_the_same_numbers(name: str) -> None:
    expected = np.load(GOLDEN[name] / "expected.npz")  # a missing file fails
    found = decoded(GOLDEN[name])
    assert sorted(found) == sorted(expected.files) and len(found) > 50
    for key, values in found.items():
        if ("features" in key or "scores" in key) and not name.startswith("lossless"):
            # Sums of products in float32. 1/sqrt(m) magnifies their rounding at the weakest positions.
            np.testing.assert_allclose(values, expected[key], rtol=1e-4, atol=1e-4 * np.abs(expected[key]).max())
        else:
            np.testing.assert_array_equal(values, expected[key], err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_given_back_as_they_were_written(name: str) -> None:
    """Every shard repeats them, and the oldest caches have no profile."""
    manifest = read_json(GOLDEN[name] / "codec.json")
    assert load_codec(GOLDEN[name], manifest).settings == manifest["settings"]


@pytest.mark.parametrize("name", ["expected.npz", "codec.json", "pass-0/shard-00000.tar", "codec/feature_mean/c/0/0/0"])
def test_a_missing_golden_file_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    copy = Path(shutil.copytree(GOLDEN["frs-2"], tmp_path / "frs-2"))
    monkeypatch.setitem(GOLDEN, "frs-2", copy)
    test_golden_cache_decodes_to_the_same_numbers("frs-2")
    (copy / name).unlink()
    with pytest.raises((OSError, PipelineError)):
        test_golden_cache_decodes_to_the_same_numbers("frs-2")


if __name__ == "__main__":
    import tempfile

    from tests.helpers.mixed_cache import make_mixed

    for name, golden in GOLDEN.items():
        kind, _, number = name.partition("-")
        settings = {"profile": kind} if kind in PROFILES else {"type": kind}
        if not golden.exists():  # what is there stays as it is: remove it by hand, with a new VERSION
            with tempfile.TemporaryDirectory() as folder:
                shutil.copytree(make_mixed(Path(folder), settings, int(number)), golden)
            np.savez_compressed(golden / "expected.npz", **decoded(golden))
