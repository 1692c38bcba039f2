"""Stage 1 under torchrun: the same bytes, whichever rank makes a shard, also after a rank is killed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cv2
import pytest

from tests.helpers.configs import make_config
from tests.helpers.datasets import make_dataset
from tests.helpers.detectors import detector
from tests.helpers.launch import finished, kill_a_rank, launch
from tests.helpers.stages import stage1, tree


def start(config: Path, *options: str, ranks: int) -> subprocess.Popen:
    return launch("stage1_cache_teacher.py", "--config", str(config), *options, ranks=ranks)


@pytest.fixture(scope="module")
def one_rank(made: dict[str, Path]) -> dict[str, str]:
    """The cache of one process. test_run.py shows that a separate process makes the same."""
    return tree(made["frs"].parent / "cache")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A data set whose last image is truncated."""
    images = make_dataset(tmp_path / "data")
    picture = images / "images" / "011.jpg"
    picture.write_bytes(picture.read_bytes()[:100])
    assert cv2.imread(str(picture)) is None
    return images


def test_two_ranks_make_the_same_cache(broken: Path, teacher: dict[str, str], tmp_path: Path) -> None:
    """Also with quarantine and stored images: whichever rank finds the broken image, both leave it out."""
    config = make_config(broken, teacher, detector("retinanet"), tmp_path / "two")
    out = finished(start(config, "--cfg-options", "cache.quarantine=True", "cache.images=True", ranks=2))
    alone = make_config(broken, teacher, detector("retinanet"), tmp_path / "alone")
    stage1(alone, **{"cache.quarantine": True, "cache.images": True})
    assert tree(tmp_path / "two" / "cache") == tree(tmp_path / "alone" / "cache")
    assert (tmp_path / "two" / "cache" / "pass-0" / "quarantine.json").exists()
    assert "on 2 ranks" in out and out.count("gate     mAP") == out.count("stored  ") == 1
    assert sum(line.startswith("pass ") and "11 of 12 views" in line for line in out.splitlines()) == 2, out


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_rank_ends_all_and_its_shards_are_recomputed(
    data: Path, teacher: dict[str, str], one_rank: dict[str, str], tmp_path: Path, ranks: int
) -> None:
    """One process finishes the cache, so it must get the lock of both ranks. The test above covers shared shards."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path)
    process = start(config, ranks=2)
    kill_a_rank(process, lambda: bool(list((tmp_path / "cache").glob("pass-0/shard-*.tar*"))))
    assert not (tmp_path / "cache" / "pass-1" / "manifest.json").exists()
    if ranks == 1:
        stage1(config)
    else:
        finished(start(config, ranks=ranks))
    assert tree(tmp_path / "cache") == one_rank


@pytest.mark.slow
def test_an_error_of_one_rank_is_printed_and_ends_all(broken: Path, teacher: dict[str, str], tmp_path: Path) -> None:
    config = make_config(broken, teacher, detector("retinanet"), tmp_path / "strict")
    out, _ = start(config, ranks=2).communicate(timeout=60)
    assert "error: " in out and "011.jpg" in out
