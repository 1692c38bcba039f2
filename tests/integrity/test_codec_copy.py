"""A trained codec is stored twice, and each copy restores the other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.cache.canonical import digest, read_json
from pipeline.codecs.base import Codec
from pipeline.codecs.frs2 import fit_scores
from pipeline.codecs.group import load_codec, save_codec
from pipeline.errors import CorruptCache
from pipeline.integrity.codec_copy import check_copy, renew_copy, restore_codec
from pipeline.integrity.damage import read_intact_codec
from tests.helpers.outputs import calibrated_codec
from tests.helpers.related import RelatedSample, related_codec
from tests.helpers.stages import tree


@pytest.fixture(scope="module")
def codec() -> Codec:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_scores, "STEPS", 5)
        return related_codec(RelatedSample(sizes=[(8, 12), (4, 6)], views=4))


@pytest.fixture
def cache(codec: Codec, tmp_path: Path) -> Path:
    save_codec(codec, tmp_path, {"views": 4})
    return tmp_path


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\7")


@pytest.mark.parametrize("damaged", ["codec/feature_mean/c/0/0/0", "codec.json"])
@pytest.mark.parametrize("known", [True, False])
def test_a_lost_codec_is_restored_from_its_copy(cache: Path, damaged: str, known: bool) -> None:
    before, wanted = tree(cache), digest(read_json(cache / "codec.json"))
    damage(cache / damaged)

    assert restore_codec(cache, wanted if known else None)

    assert tree(cache) == before
    load_codec(cache, read_intact_codec(cache))


def test_a_copy_of_another_codec_is_not_used(cache: Path) -> None:
    shutil.rmtree(cache / "codec")

    assert not restore_codec(cache, "0" * 64) and not (cache / "codec").exists()
    damage(cache / "codec-copy" / "codec" / "zarr.json")
    assert not restore_codec(cache, None)


@pytest.mark.parametrize("damaged", ["codec-copy/codec.json", "codec-copy/codec/feature_basis/c/0/0/0", "codec-copy"])
def test_a_damaged_copy_is_found_and_copied_again(cache: Path, damaged: str) -> None:
    before, manifest = tree(cache), read_intact_codec(cache)
    check_copy(cache, manifest)
    if damaged == "codec-copy":
        shutil.rmtree(cache / damaged)
    else:
        damage(cache / damaged)
        with pytest.raises(CorruptCache, match="codec-copy"):
            check_copy(cache, manifest)

    assert renew_copy(cache, manifest, needed=True)

    assert tree(cache) == before and not renew_copy(cache, manifest, needed=True)


def test_a_codec_that_can_be_calibrated_again_has_no_copy(tmp_path: Path) -> None:
    save_codec(calibrated_codec("frs"), tmp_path, {})

    assert not (tmp_path / "codec-copy").exists()
    assert not renew_copy(tmp_path, read_intact_codec(tmp_path), needed=False)
