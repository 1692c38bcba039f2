"""Teachers whose levels have different numbers of channels, as those of YOLOv3 and SSD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from pipeline.cache.canonical import read_json
from pipeline.codecs.base import Codec, Measure
from pipeline.codecs.group import load_codec, save_codec
from pipeline.codecs.packing import stack
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.errors import CodecError, CorruptCache
from pipeline.records import TeacherOutput
from tests.helpers.outputs import RandomSample, calibrated_codec, random_output, weighted_error

SIZES, WIDTHS = [(16, 24), (8, 12)], [5, 8]


def cut(output: TeacherOutput, widths: Sequence[int] = WIDTHS) -> TeacherOutput:
    return TeacherOutput([f[:, :w] for f, w in zip(output.features, widths)], output.scores, output.frs)


class UnevenSample(RandomSample):
    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        yield from map(cut, super().outputs(part))

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[tuple[TeacherOutput, Measure]]:
        for exact in self.outputs(part):
            yield exact, lambda coded, exact=exact: {loss: weighted_error(loss, coded, exact) for loss in losses}


def codec_of(kind: str, **options: object) -> Codec:
    return calibrate_codec(read_options({"type": kind, **options}), UnevenSample(8, 6, SIZES))


def decoded(codec: Codec, output: TeacherOutput) -> TeacherOutput:
    samples, _ = codec.encode(output)
    for sample in samples:
        codec.check_sample(sample, output.levels)
    return codec.decode(stack(samples, [output.levels] * len(samples)))


def test_lossless_is_exact() -> None:
    exact = cut(random_output(2, SIZES, 8, 6, 1))
    back = decoded(codec_of("lossless"), exact)
    for name in ("features", "scores", "frs"):
        for one, other in zip(getattr(back, name), getattr(exact, name), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("profile", ["frs", "universal"])
def test_the_lossy_error_is_as_requested(profile: str) -> None:
    codec, exact = codec_of("frs", profile=profile), cut(random_output(2, SIZES, 8, 6, 30))
    back = decoded(codec, exact)
    assert [f.shape for f in back.features] == [f.shape for f in exact.features]
    assert weighted_error("feature" if profile == "frs" else "pkd", back, exact) < 2 * codec.allowed_error
    assert not codec.tables["feature_basis"][0, WIDTHS[0] :].any(), "a wider level's channels are not mixed in"
    samples, _ = codec.encode(exact)
    assert max(codec.compare(exact, stack(samples, [exact.levels] * 2)).values()) <= 1


@pytest.mark.parametrize("kind", ["lossless", "frs"])
def test_the_widths_are_stored_and_checked(kind: str, tmp_path: Path) -> None:
    codec = codec_of(kind)
    save_codec(codec, tmp_path, {})
    manifest = read_json(tmp_path / "codec.json")
    assert manifest["settings"]["level_channels"] == WIDTHS
    assert load_codec(tmp_path, manifest).widths(2) == tuple(WIDTHS)
    for forged in ([5, 9], [5, 0], [5, "8"], [], 8, *([[8]] if kind == "frs" else [])):
        settings = {**manifest["settings"], "level_channels": forged}
        with pytest.raises(CorruptCache, match="level_channels"):
            load_codec(tmp_path, {**manifest, "settings": settings})
    for wrong in ([8, 5], [8, 8]):
        with pytest.raises(CodecError, match=r"levels \[5, 8\], found"):
            codec.encode(cut(random_output(1, SIZES, 8, 6), wrong))


def test_a_sample_of_other_levels_is_refused() -> None:
    codec = codec_of("lossless")
    (sample,), _ = codec.encode(cut(random_output(1, SIZES, 8, 6)))
    with pytest.raises(CorruptCache, match="a sample has 1 FPN levels, the codec 2"):
        codec.check_sample(sample, (SIZES[0],))


@pytest.mark.parametrize("kind", ["lossless", "frs"])
def test_equal_widths_are_not_written(kind: str) -> None:
    codec = calibrated_codec(kind)
    assert "level_channels" not in codec.settings and codec.widths(2) == (8, 8)
    with pytest.raises(CodecError, match=r"expected .* levels of one width"):
        codec.encode(cut(random_output(1, SIZES, 8, 6)))
