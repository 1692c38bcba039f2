"""Caches written once and committed: whatever changes, these bytes must go on meaning the same numbers.

Made by `python -m tests.golden.test_golden` from the mixed cache of tests/helpers/; only together with a new VERSION.
Those of frs2 are zip files: they have many tables, most of which compress well.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cache.canonical import read_json
from pipeline.cache.reader import ShardReader
from pipeline.cache.shard_plan import ShardPlan
from pipeline.codecs.frs.settings import PROFILES
from pipeline.codecs.group import load_codec
from pipeline.codecs.packing import stack
from pipeline.errors import PipelineError
from pipeline.records import ViewRecord
from tests.helpers.symbols import to_groups

FRS2 = {
    f"frs2-{profile}{'' if scores else '-unscored'}-2": {"type": "frs2", "profile": profile, "scores": scores}
    for profile in PROFILES
    for scores in (True, False)
}
NAMES = [*(f"{profile}-{version}" for version in (1, 2) for profile in PROFILES), "lossless-2", *FRS2]
GOLDEN = {name: Path(__file__).parent / (f"{name}.zip" if name in FRS2 else name) for name in NAMES}


@pytest.fixture
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a golden cache."""
    return unpacked(GOLDEN[request.param], tmp_path)


def unpacked(path: Path, tmp_path: Path) -> Path:
    if path.suffix != ".zip":
        return path
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / path.stem)
    return tmp_path / path.stem


def decoded(root: Path) -> dict[str, np.ndarray]:
    """Maps, symbols and tensors of every sample, by name."""
    codec: Any = load_codec(root, read_json(root / "codec.json"))
    reader = ShardReader(root / "pass-0/shard-00000.tar")
    found = {}
    for index in range(len(reader)):
        stored = reader.read(index)
        _, levels = ViewRecord.from_row(stored.pop("record"), stored.pop("thumbnail"))
        given = codec.read_sample(stored, levels) if codec.trained else stored  # those of version 1 are padded
        batch = stack([given], [levels])
        output = codec.decode(batch)
        for name in ("features", "scores", "frs"):
            found |= {f"{index}/{name}/{n}": level[0].numpy() for n, level in enumerate(getattr(output, name))}
        if codec.name == "lossless":
            continue
        maps = codec.coded_maps(batch)
        for what in codec.kinds:
            for level, (q,) in enumerate(codec.planes(batch, maps, what)):
                found[f"{index}/{what}_symbols/{level}"] = to_groups(q).numpy().astype(np.int32)
        if codec.name == "frs2":
            found[f"{index}/flags"] = stored["frs"][: len(levels)]
    return found


@pytest.mark.parametrize("golden", NAMES, indirect=True)
def test_golden_cache_decodes_to_the_same_numbers(golden: Path) -> None:
    compare(golden)


def compare(golden: Path) -> None:
    expected = np.load(golden / "expected.npz")  # a missing file fails
    found = decoded(golden)
    assert sorted(found) == sorted(expected.files) and len(found) > 30
    for key, values in found.items():
        if key.split("/")[1] in ("features", "scores") and not golden.name.startswith("lossless"):
            # Sums of products in float32. 1/sqrt(m) magnifies their rounding at the weakest positions.
            np.testing.assert_allclose(values, expected[key], rtol=1e-4, atol=1e-4 * np.abs(expected[key]).max())
        else:
            np.testing.assert_array_equal(values, expected[key], err_msg=key)


@pytest.mark.parametrize("golden", FRS2, indirect=True)
def test_golden_samples_use_predictions_and_do_without(golden: Path) -> None:
    expected, tables = np.load(golden / "expected.npz"), {path.name for path in (golden / "codec").iterdir()}
    flags = np.stack([expected[f"{n}/flags"] for n in range(3)])
    bits = (1,) if "unscored" in golden.name else (1, 2)
    assert "level_in" in tables and ("net_output" in tables) == (len(bits) == 2)
    assert all(set((flags & bit).ravel()) == {0, bit} for bit in bits) and flags.max() <= sum(bits)


@pytest.mark.parametrize("golden", NAMES, indirect=True)
def test_settings_are_given_back_as_they_were_written(golden: Path) -> None:
    """Every shard repeats them, and the oldest caches have no profile."""
    manifest = read_json(golden / "codec.json")
    assert load_codec(golden, manifest).settings == manifest["settings"]


@pytest.mark.parametrize("name", ["expected.npz", "codec.json", "pass-0/shard-00000.tar", "codec/feature_mean/c/0/0/0"])
def test_a_missing_golden_file_fails(tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(GOLDEN["frs-2"], tmp_path / "frs-2"))
    compare(copy)
    (copy / name).unlink()
    with pytest.raises((OSError, PipelineError)):
        compare(copy)


def pack(folder: Path, target: Path) -> None:
    """Write the files of a golden cache to a zip file, except for the second copy of the codec."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if not name.startswith("codec-copy/"):
                file.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    import tempfile

    from tests.helpers.mixed_cache import PLAN, make_mixed

    for name, path in GOLDEN.items():
        kind, _, number = name.partition("-")
        settings: dict[str, Any] = {"profile": kind} if kind in PROFILES else {"type": kind}
        # One sample of each batch, because four caches of frs2 are large.
        few = ShardPlan(tuple((pad, batch[:1]) for pad, batch in PLAN.batches))
        if path.exists():  # what is there stays as it is: remove it by hand, with a new VERSION
            continue
        with tempfile.TemporaryDirectory() as folder:
            if name in FRS2:
                root = make_mixed(Path(folder), FRS2[name], plan=few)
            else:
                root = Path(shutil.copytree(make_mixed(Path(folder), settings, int(number)), path))
            np.savez_compressed(root / "expected.npz", **decoded(root))
            if name in FRS2:
                pack(root, path)
