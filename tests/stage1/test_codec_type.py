"""A config that names no codec type: a new cache gets the default, and an existing cache keeps its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import write_json
from pipeline.codecs.frs2.settings import Frs2Options
from pipeline.codecs.registry import DEFAULT, read_options
from pipeline.config import load_config
from pipeline.errors import ConfigError, StaleCache
from pipeline.integrity.repair import repair
from pipeline.progress import Silent
from pipeline.tools.reencode.run import _plan_target
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector
from tests.helpers.stages import stage1, stage2, tree


@pytest.fixture
def untyped(data: Path, teacher: dict[str, str], tmp_path: Path) -> Path:
    return make_config(data, teacher, detector("retinanet"), tmp_path, None)


def type_in(config: Path, cache: Path, **options: Any) -> str:
    _, sections = load_config(str(config), {"cache.dir": str(cache), **options})
    return sections.cache.codec.type


def cache_of(made: dict[str, Path], codec: str = "frs") -> Path:
    return made[codec].parent / "cache"


def test_the_default_is_frs2(untyped: Path, tmp_path: Path) -> None:
    assert DEFAULT == type_in(untyped, tmp_path / "new") == "frs2"
    assert read_options({"quality": "small"}) == Frs2Options(quality="small")


@pytest.mark.parametrize("codec", ["frs", "lossless"])
def test_an_existing_cache_keeps_its_type(
    untyped: Path, of_version: dict[str, Path], tmp_path: Path, codec: str
) -> None:
    """Both stages and repair."""
    root = Path(shutil.copytree(cache_of(of_version, codec), tmp_path / "copy"))
    before, here = tree(root), {"cache.dir": str(root)}
    assert type_in(untyped, root) == codec
    (root / "pass-0/shard-00001.tar").unlink()
    cfg, sections = load_config(str(untyped), here)
    assert len(repair(cfg, sections, lambda _: None, Silent())) == 1
    assert stage1(untyped, **here)["views_computed"] == 0 and tree(root) == before
    if codec == "frs":
        assert stage2(untyped, **here)["content"] == Cache(root).content()


@pytest.mark.parametrize(
    "lost", [(), ("plan.json",), ("plan.json", "codec.json"), ("plan.json", "codec.json", "codec")]
)
def test_the_type_of_a_damaged_cache(
    untyped: Path, of_version: dict[str, Path], tmp_path: Path, lost: tuple[str, ...]
) -> None:
    """plan.json, codec.json or a shard tells it. A damaged file counts as a missing one."""
    root = Path(shutil.copytree(cache_of(of_version), tmp_path / "copy"))
    for name in lost:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"{")
    assert type_in(untyped, root) == "frs"


def test_the_copy_of_a_codec_tells_its_type(untyped: Path, made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "copy/codec-copy").mkdir(parents=True)
    shutil.copy(cache_of(made) / "codec.json", tmp_path / "copy/codec-copy")
    assert type_in(untyped, tmp_path / "copy") == "frs"


@pytest.mark.parametrize("codec", [{}, {"type": 3}, [], None, {"type": "frs9"}])
def test_a_forged_type_is_none(untyped: Path, tmp_path: Path, codec: Any) -> None:
    """Opening the cache says what is wrong with it."""
    (tmp_path / "copy").mkdir()
    write_json(tmp_path / "copy/plan.json", {"recipe": {"codec": codec}})
    assert type_in(untyped, tmp_path / "copy") == DEFAULT


def test_another_type_or_other_keys_end_in_one_line(untyped: Path, made: dict[str, Path], tmp_path: Path) -> None:
    """The type is named before the options that only one of the two codecs has."""
    frs, lossless = ({"cache.dir": str(cache_of(made, codec))} for codec in ("frs", "lossless"))
    wants = r"codec\.type: the cache has '{}', the config wants 'frs2'"
    for run in (stage1, stage2):
        with pytest.raises(StaleCache, match=wants.format("frs")):
            run(untyped, **frs, **{"cache.codec.type": "frs2"})
        with pytest.raises(StaleCache, match=wants.format("lossless")):
            run(untyped, **lossless, **{"cache.codec.quality": "small"})
        with pytest.raises(StaleCache, match=r"codec\.quality: the cache has 'balanced', the config wants 'small'"):
            run(untyped, **frs, **{"cache.codec.quality": "small"})


def test_a_live_teacher_needs_no_cache(untyped: Path, tmp_path: Path) -> None:
    live = {"teacher.source": "live", "cache.store": {"timeout": 1, "max_retries": 0}}
    _, sections = load_config(str(untyped), {"cache.dir": "http://127.0.0.1:9/cache", **live})
    assert sections.cache.codec.type == DEFAULT


@pytest.mark.parametrize(
    ("codec", "like", "target", "expected"),
    [
        ({}, None, None, "frs2"),
        ({"quality": "small"}, None, None, "frs2"),
        ({}, "frs", None, "frs"),
        ({"quality": "small"}, "frs", None, "frs"),
        ({"quality": "small"}, None, "frs", "frs"),
        ({"type": "frs2"}, "frs", None, "frs2"),
        ({"type": "frs"}, None, None, "frs"),
    ],
)
def test_reencode_chooses_a_type(
    made: dict[str, Path], tmp_path: Path, codec: dict[str, Any], like: str | None, target: str | None, expected: str
) -> None:
    root = cache_of(made, target) if target else tmp_path / "new"
    other = str(cache_of(made, like)) if like else None
    plan = _plan_target(Cache(cache_of(made, "lossless")), root, codec, other)
    assert plan["recipe"]["codec"]["type"] == expected
    assert plan["recipe"]["codec"]["quality"] == codec.get("quality", "balanced")
    json.dumps(plan)


def test_reencode_needs_a_source_with_boxes(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the source has no box distributions, .*; leave out --boxes"):
        _plan_target(Cache(cache_of(made, "lossless")), tmp_path / "new", {"boxes": True}, None)
