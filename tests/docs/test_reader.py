"""docs/read_cache.py, which knows nothing of this project, reads what this project wrote."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipeline.cache.cache import Cache
from pipeline.cache.reader import ShardReader
from pipeline.codecs.base import Codec
from pipeline.tools.export import decode_view as own
from pipeline.tools.export import find_view
from tests.helpers.ans_samples import coded, fitted, make, plain_model
from tests.helpers.mixed_cache import codec_of, decoded, make_mixed
from tests.helpers.paths import ROOT
from tests.helpers.related import short_training
from tests.helpers.wide_heads import keep_few_directions

FILE = ROOT / "docs" / "read_cache.py"


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_cache", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def close(found: list[np.ndarray], expected: list) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == tuple(b.shape)
        np.testing.assert_allclose(a, b.numpy(), atol=1e-4 * max(float(b.abs().max()), 1e-30))


@pytest.mark.parametrize("codec", ["frs", "lossless"])
def test_every_view_of_a_cache(made: dict[str, Path], reader: ModuleType, codec: str) -> None:
    cache = Cache(made[codec].parent / "cache")
    seen = set()
    for image, view, features, scores, frs in reader.read(cache.root):
        _, output = own(cache, find_view(cache, image, view))
        for found, levels in ((features, output.features), (scores, output.scores), (frs, output.frs)):
            close(found, [level[0] for level in levels])
        seen.add((image, view))
    assert seen == {(image, view) for image in range(100, 112) for view in (0, 1)}


OF_1 = [{}, {"profile": "universal"}, {"scores": False}, {"type": "lossless", "scores": False}]
OF_2 = [{"type": "frs2"}, {"type": "frs2", "profile": "universal"}, {"type": "frs2", "scores": False}]


@pytest.mark.parametrize(
    ("settings", "version"), [*((one, 1) for one in OF_1), *((one, 2) for one in [*OF_1, *OF_2])], ids=str
)
def test_mixed_grids_and_empty_maps(tmp_path: Path, reader: ModuleType, settings: dict[str, Any], version: int) -> None:
    require_same(reader, tmp_path, settings, version)


@pytest.mark.parametrize(("kind", "version"), [("frs", 1), ("frs", 2), ("frs2", 2)])
def test_planes_of_channels(
    tmp_path: Path, reader: ModuleType, kind: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_few_directions(monkeypatch, 4)
    codec = require_same(reader, tmp_path, {"type": kind}, version)
    assert codec.tables["score_expected"].shape[1] == 4 + codec.score_channels


def require_same(reader: ModuleType, folder: Path, settings: dict[str, Any], version: int) -> Codec:
    """Make a cache, and fail where the reader finds other tensors than the cache's codec, which is returned."""
    with short_training():
        root = make_mixed(folder, settings, version)
    (root / "pass-0/manifest.json").touch()
    codec, shard = codec_of(root), ShardReader(root / "pass-0/shard-00000.tar")
    samples = list(reader.read(root))
    assert [row[:2] for row in samples] == [(ref.image_id, ref.view) for ref in shard.sidecar.samples]
    for index, (_, _, *sample) in enumerate(samples):
        for found, levels in zip(sample, decoded(codec, shard.read(index)), strict=True):
            close(found, levels)
    return codec


@pytest.mark.parametrize("name", ["frs2-frs", "frs2-frs-unscored", "frs2-universal", "frs2-universal-unscored"])
def test_golden_caches_of_frs2(tmp_path: Path, reader: ModuleType, name: str) -> None:
    """Their network is trained, and their values are committed."""
    with zipfile.ZipFile(ROOT / "tests" / "golden" / f"{name}-2.zip") as file:
        file.extractall(tmp_path)
    (tmp_path / "pass-0/manifest.json").touch()
    expected = np.load(tmp_path / "expected.npz")
    samples = list(reader.read(tmp_path))
    assert len(samples) == 3
    for index, (_, _, *sample) in enumerate(samples):
        for what, levels in zip(("features", "scores", "frs"), sample, strict=True):
            for level, found in enumerate(levels):
                values = expected[f"{index}/{what}/{level}"]
                np.testing.assert_allclose(found, values, atol=1e-4 * max(np.abs(values).max(), 1e-30))


@pytest.mark.parametrize("model", [fitted, plain_model])
@pytest.mark.parametrize(("seed", "strength", "wide"), [(0, 6.0, False), (1, -1000.0, False), (2, -10.0, True)])
def test_symbols_in_full(reader: ModuleType, model: Any, seed: int, strength: float, wide: bool) -> None:
    """Many lanes, no symbol at all, numbers in full."""
    made = make(seed, [(12, 16), (6, 8)], 3, strength, wide)
    data, sizes = coded(made, model())
    found = reader.tokens_of(np.frombuffer(data, np.uint8), sizes, *model().to_tables("score").values())
    assert found.tolist() == made.tokens.tolist()


def test_many_symbols(reader: ModuleType) -> None:
    """More lanes than a byte counts."""
    made = make(3, [(80, 96), (40, 48)], 8, 6.0)
    data, sizes = coded(made, fitted())
    assert data[0] >= 8
    found = reader.tokens_of(np.frombuffer(data, np.uint8), sizes, *fitted().to_tables("score").values())
    assert found.tolist() == made.tokens.tolist()


def test_it_is_short() -> None:
    """The documents call it a reader of 165 lines."""
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith('"""')]
    assert len(lines) <= 165 and max(map(len, lines)) <= 120


def test_a_closed_pipe_ends_quietly(made: dict[str, Path]) -> None:
    """As `| head -2` closes it."""
    command = [sys.executable, FILE, made["frs"].parent / "cache"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_alone(made: dict[str, Path], tmp_path: Path) -> None:
    """As a script, with this project out of reach; a flipped byte stops it."""
    root = Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))
    shutil.copy(FILE, tmp_path / "read_cache.py")
    ask = "import runpy, sys; sys.argv = ['', 'cache']; runpy.run_path('read_cache.py', run_name='__main__'); print("
    ask += "sorted({name.split('.')[0] for name in sys.modules} & {'pipeline', 'torch', 'webdataset'}))"

    def run() -> subprocess.CompletedProcess:
        command = [sys.executable, "-I", "-c", ask]
        return subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)

    lines = run().stdout.splitlines()
    assert len(lines) == 25 and lines[-1] == "[]"
    first = Cache(root).references(0)[0][0]
    assert lines[0].split()[:2] == [str(first.image_id), str(first.view)]
    shard = root / "pass-1/shard-00000.tar"
    data = bytearray(shard.read_bytes())
    data[-3000] ^= 4
    shard.write_bytes(data)
    assert run().returncode != 0
