"""The rivals of benchmarks/codec_rivals.py are what their names say, so that the table compares real things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import ans, common, rivals, scenes
from benchmarks.measure import as_rival, measure
from benchmarks.sample import DrawnSample, calibrate
from benchmarks.student import Student
from pipeline.codecs.frs.codec import Frs
from pipeline.config import load_config
from pipeline.mmdet_compat.registry import Config
from pipeline.stage2.train import train_student
from pipeline.teacher.model import Teacher
from pipeline.teacher.zoo import find_teacher
from tests.helpers.datasets import CLASSES
from tests.helpers.outputs import calibrated_codec, random_output

EXACT = random_output(1, [(16, 24), (8, 12)], 8, 30, 4)
# Largest error of a score that a rival may make; None: it makes large ones on purpose.
WORST = {
    "blosc default, float32": 0.0,
    "fp16 + zstd 19": 1e-3,
    "int8 a channel + zstd 19": 3e-3,
    "int4 a channel + zstd 19": 4e-2,
    "zfp, tolerance 1% of rms": 1e-2,
    "zfp, tolerance 10% of rms": 1e-1,
    "top-10 scores, fp16 features": None,
    "top-100 scores, fp16 features": 1e-3,
    "positions with m < 0.05 dropped, int8": 0.051,
}


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rivals_are_honest(name: str) -> None:
    sizes, decode = rivals.RIVALS[name](EXACT)
    coded = decode()
    assert sizes.keys() == {"features", "scores", "frs"} and min(sizes.values()) > 0
    for a, b in zip(coded.features + coded.scores, EXACT.features + EXACT.scores):
        assert a.shape == b.shape and bool(torch.isfinite(a).all())
    error = max(float((a - b).abs().max()) for a, b in zip(coded.scores, EXACT.scores))
    assert WORST[name] is None or error <= WORST[name]
    if WORST[name] is None:
        kept = [s.topk(10, dim=1) for s in EXACT.scores]
        for level, (values, channels) in zip(coded.scores, kept):
            assert torch.allclose(level.gather(1, channels), values, atol=1e-3)
    assert max(float((a - b).abs().max()) for a, b in zip(coded.frs, EXACT.frs)) < 0.02


def test_the_table_is_measured_on_a_real_student(made: dict[str, Path], tmp_path: Path) -> None:
    cfg, sections = load_config(str(made["frs"]), {"work_dir": str(tmp_path)})
    train_student(cfg, sections)
    teacher = Teacher(find_teacher(sections.teacher), CLASSES, torch.device("cpu"))
    student = Student(Config.fromfile(made["frs"]), tmp_path / "epoch_1.pth", teacher)

    def draw(number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(number)
        return torch.randint(0, 255, (3, 64, 128), generator=generator).byte()

    sample = DrawnSample(teacher, draw, 6, 3)
    codecs = {f"{q}": as_rival(calibrate(sample, q)) for q in (0.3, 0.02, "lossless")}
    weights = {"feature": 1.0, "score": 1.0}
    table = measure(codecs | {"fp16": rivals.RIVALS["fp16 + zstd 19"]}, teacher, student, [draw(90)], weights)
    assert table["lossless"]["err_total"] == 0
    assert 0 < table["0.02"]["err_features"] < table["0.3"]["err_features"] < 1
    assert table["0.3"]["kb_view"] < table["0.02"]["kb_view"] < table["fp16"]["kb_view"] < table["lossless"]["kb_view"]
    parts = [table["0.3"][f"kb_{part}"] for part in ("features", "scores", "map")]
    assert min(parts) > 0 and sum(parts) == pytest.approx(table["0.3"]["kb_view"])


def test_views_fit_their_scale(tmp_path: Path) -> None:
    for make in (scenes.scene, scenes.photograph):
        for size, scale in scenes.SIZES.items():
            view = make(1, size)
            assert view.dtype == torch.uint8 and max(view.shape[1:]) <= max(scale) and min(view.shape[1:]) <= min(scale)
            assert max(view.shape[1:]) == max(scale) or min(view.shape[1:]) == min(scale)
    rows = [{"codec": "a", "kb": 1.25}, {"codec": "longer", "kb": None}]
    common.write(tmp_path / "rows.json", rows, more=1)
    found = json.loads((tmp_path / "rows.json").read_text())
    assert found["rows"] == rows and found["more"] == 1 and found["machine"]["cores"] > 0
    assert common.table(rows, ["codec", "kb"]).splitlines() == ["codec   kb", "a       1.25", "longer"]


def test_the_entropy_coder_is_measured_on_tokens_of_the_codec() -> None:
    codec = calibrated_codec("frs", quality=0.05)
    assert isinstance(codec, Frs)
    outputs = [random_output(1, [(40, 48), (20, 24)], 8, 6, seed) for seed in range(6)]
    coded = [(codec.encode(output)[0][0], output.levels) for output in outputs]
    for what in codec.kinds:
        row = ans.measure(codec, what, coded[:4], coded[4:], 1)
        assert row["tokens"] > 1000 and 0.3 < row["ratio"] < 0.95
        assert min(row[f"{name}_ms"] for name in ("classes", "encode", "encode_zstd", "decode", "decode_zstd")) > 0
