"""A loss from another package: found by its entry point alone, and a student trains with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.losses.registry import feature_losses
from tests.conftest import detector, make_config

PACKAGE = '''
"""A toy feature loss: mean absolute difference inside each sample's own grid."""
from pipeline.losses.base import Loss

def level(teacher, student, inside):
    return ((teacher - student).abs() * inside[:, None]).sum() / inside.sum()

TOY = Loss("toy_l1", level, adapters=True)
'''
TRAIN = """
import sys
import torch
from pipeline.config import load_config
from pipeline.data.stream import Stream
from pipeline.mmdet_compat.registry import MODELS
from pipeline.stage2.runner import wrap_student
from pipeline.stage2.teacher_data import prepare_teacher_data

def train(config, source):
    cfg, sections = load_config(config, {"distill.feature_loss": "toy", "teacher.source": source})
    data = prepare_teacher_data(cfg, sections)
    model = wrap_student(MODELS.build(cfg.model), data, sections.distill).train()
    batch = next(iter(Stream(data.stream, batch_size=4, seed=0)))
    losses = model(**model.data_preprocessor(batch, True), mode="loss")
    before = [p.clone() for p in model.adapters.parameters()]
    losses["loss_toy_feature"].backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert float(losses["loss_toy_feature"]) > 0 and "loss_frs_score" in losses
    assert all(not torch.equal(a, b) for a, b in zip(before, model.adapters.parameters()))
    print("trained", source, flush=True)

lossless, frs = sys.argv[1:]
train(lossless, "cache")
train(lossless, "live")
train(frs, "cache")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder as pip would leave it: a module, and metadata that names its entry point."""
    info = tmp_path / "site" / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[frs_teacher_cache.losses]\ntoy = toy_loss:TOY\n")
    (info.parent / "toy_loss.py").write_text(PACKAGE)
    return info.parent


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the other package installed."""
    root = Path(__file__).resolve().parents[1]
    environment = {"PYTHONPATH": f"{site}:{root}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=root
    )


def test_a_student_trains_with_a_loss_from_outside(made: dict[str, Path], site: Path) -> None:
    """From a lossless cache and live; a cache whose calibration never measured the loss is refused."""
    done = run(site, "-c", TRAIN, str(made["lossless"]), str(made["frs"]))

    assert done.stdout == "trained cache\ntrained live\n", done.stderr
    assert "ConfigError: distill.feature_loss='toy'" in done.stderr.splitlines()[-1]
    assert "was calibrated without this loss" in done.stderr


BROKEN = [
    ("toy = toy_loss:MISSING", "cannot be loaded"),
    ("toy = toy_loss:level", "expected a Loss"),
    ("pkd = toy_loss:TOY", "'pkd' is already taken"),
    ("one = toy_loss:TOY\ntwo = toy_loss:TOY", "'toy_l1' is already taken"),
]


@pytest.fixture
def broken(site: Path, request: pytest.FixtureRequest) -> str:
    """Install an entry point that cannot serve. Returns what its error must say."""
    entry, message = request.param
    (site / "toy-1.0.dist-info" / "entry_points.txt").write_text(f"[frs_teacher_cache.losses]\n{entry}\n")
    return message


@pytest.mark.parametrize("broken", BROKEN, indirect=True)
def test_a_broken_entry_point_is_named(site: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "toy_loss", raising=False)
    with pytest.raises(ConfigError, match=broken):
        feature_losses.__wrapped__()


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN[:1], indirect=True)
def test_stage_1_ends_with_its_line(site: Path, broken: str, data: Path, teacher: dict) -> None:
    config = make_config(data, teacher, detector("retinanet"), site)

    done = run(site, "-m", "pipeline", "stage1", "--config", str(config))

    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and broken in line
