"""`plan`: the forecast agrees with what stage 1 then measures."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.model import BaseModule

from pipeline.cli.main import main
from pipeline.cli.tables import forecast_table
from pipeline.config import load_config
from pipeline.data.shard_planning import plan_views
from pipeline.errors import DataError
from pipeline.mmdet_compat.registry import Config
from pipeline.progress import Silent
from pipeline.stage1.job import open_job
from pipeline.tools.forecast import run as module
from pipeline.tools.forecast.clock import Clock
from pipeline.tools.forecast.disk import free_bytes, nearest_folder
from pipeline.tools.forecast.estimate import estimate_hours, interval
from pipeline.tools.forecast.run import forecast, list_warnings
from pipeline.tools.forecast.timed_sample import PROBE_SHARE, TRAINING_SHARE, TimedSample
from pipeline.tools.forecast.training import measure_training
from pipeline.tools.forecast.trial import run_trial
from tests.helpers.configs import make_config
from tests.helpers.datasets import make_dataset
from tests.helpers.detectors import detector
from tests.helpers.stages import stage1


@pytest.fixture(scope="module")
def planned(
    data: Path, teacher: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    work = tmp_path_factory.mktemp("planned")
    config = make_config(data, teacher, detector("retinanet"), work, "frs")
    cfg, sections = load_config(str(config))
    logged: list[str] = []
    found = forecast(cfg, sections, logged.append, Silent(), samples=9)
    assert not any("gradient error on the probe" in line for line in logged), "one view reports, which says nothing"
    assert [path.name for path in work.iterdir()] == ["config.py"]  # temporary files are removed
    return config, found


def test_the_interval_contains_the_true_size(planned: tuple[Path, dict[str, Any]]) -> None:
    config, found = planned
    summary = stage1(config)
    assert (found["images"], found["distinct_views"], found["sampled_views"]) == (12, 24, 9)
    assert found["bytes_low"] <= summary["bytes"] <= found["bytes_high"]
    assert found["bytes"] == pytest.approx(summary["bytes"], rel=0.1)
    assert sum(row[0] for row in found["bytes_by_tensor"].values()) == pytest.approx(found["bytes"], abs=5)
    for mean, low, high in found["bytes_by_tensor"].values():
        assert low <= mean <= high
    assert found["bytes_per_view"] == pytest.approx(found["bytes"] / 24, abs=1)
    needed = found["stage1_views_per_second"] * found["bytes_per_view"] / 1e6
    assert found["write_mb_per_second_needed"] == pytest.approx(needed, rel=0.01)
    assert found["live_seconds"] >= found["stage2_seconds"] > 0 and found["write_mb_per_second_available"] > 0
    assert not any("disk" in line for line in found["warnings"])


def test_the_codec_of_a_finished_cache_is_reused(planned: tuple[Path, dict[str, Any]]) -> None:
    """The forecast is then the size of that cache, and nothing is calibrated."""
    config, _ = planned
    summary = stage1(config)
    logged: list[str] = []
    cfg, sections = load_config(str(config))
    found = forecast(cfg, sections, logged.append, Silent(), samples=12)
    assert not any("calibrating" in line for line in logged)
    assert found["bytes"] == pytest.approx(summary["bytes"], rel=0.05)


def test_broken_images_are_left_out_where_stage_1_does(
    data: Path, teacher: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if all images of the first shard are broken."""
    images = make_dataset(tmp_path / "data")
    config = make_config(images, teacher, detector("retinanet"), tmp_path, "lossless")
    found, broken = [], set()
    for quarantine in (False, True):
        cfg, sections = load_config(str(config), {"cache.quarantine": quarantine, "cache.batch_size": 1})
        job = open_job(cfg, sections, lambda _: None, Silent())
        if not broken:
            broken = {image for image, _, _ in plan_views(job.images, job.views, 0, job.plan["layout"])[0].samples}
            for image in broken:
                (images / "images" / f"{image - 100:03d}.jpg").write_bytes(b"not a picture")
        raised = pytest.raises(DataError) if not quarantine else nullcontext()
        with raised, run_trial(job, tmp_path, 12, Clock(1.0, lambda: 0.0)) as made:
            found += [ref.image_id for shard in made.cache.references(0) for ref in shard]
            assert len(made.positions) == len(found)
            assert measure_training(cfg, sections, job.images, job.views, made, 0.1).images_per_second > 0
    assert len(found) + len(broken) == 12 and not broken & set(found)


def test_a_full_disk_is_refused(
    planned: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config, known = planned
    monkeypatch.setattr(module, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(module, "count_existing_bytes", lambda _: 0)
    monkeypatch.setattr(sys, "argv", ["frs-cache", "plan", "--config", str(config), "--samples", "4", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and json.loads(out)["free_bytes"] == 1000
    assert err.splitlines()[-1].startswith(f"error: {json.loads(out)['cache']}: disk: 0.00 GB free, the cache may need")
    slow = {**known, "write_mb_per_second_available": known["write_mb_per_second_needed"] / 2}
    assert any("writes slower" in line for line in list_warnings(slow))
    assert any("live teacher is quicker" in line for line in list_warnings({**known, "break_even_epochs": 99.0}))


def test_the_interval_has_95_percent_coverage() -> None:
    """Of 300 samples of a population, 95% of the intervals contain its sum. Without spread they are points."""
    rng = np.random.default_rng(0)
    places = rng.integers(1000, 2000, 4000)
    sizes = places * 9 * rng.lognormal(0, 0.3, 4000)
    covered = 0
    for _ in range(300):
        chosen = rng.choice(4000, 40, replace=False)
        mean, low, high = interval(sizes[chosen], places[chosen], places.sum(), 4000)
        assert low < mean < high
        covered += low <= sizes.sum() <= high
    assert 0.9 <= covered / 300 <= 0.99
    assert interval(places * 3, places, 500, 10) == pytest.approx((1500, 1500, 1500))


def test_the_disk_of_a_missing_folder(tmp_path: Path) -> None:
    assert nearest_folder(tmp_path / "a" / "b" / "c") == tmp_path
    assert free_bytes(tmp_path) > 0


class SlowMachine:
    """A clock that stands still, except that each pass of a backbone takes `seconds` for a view."""

    def __init__(self, seconds: float) -> None:
        self.time, self._seconds = 0.0, seconds

    def now(self) -> float:
        return self.time

    def add(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, BaseModule) and type(module).__name__ == "ResNet":
            self.time += self._seconds * len(inputs[0])


@pytest.mark.parametrize(("seconds", "cut"), [(1e-6, False), (0.25, True), (3.0, True)])
def test_a_forecast_keeps_to_its_time(
    seconds: float, cut: bool, data: Path, teacher: dict[str, str], tmp_path: Path
) -> None:
    """However slow the teacher. What is left out for that is said in one line."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs")
    cfg, sections = load_config(str(config))
    slow = SlowMachine(seconds)
    handle = torch.nn.modules.module.register_module_forward_hook(slow.add)
    try:
        found = forecast(cfg, sections, lambda _: None, Silent(), samples=12, seconds=60.0, now=slow.now)
    finally:
        handle.remove()
    least = 80 * seconds  # passes of the fewest rounds
    assert found["took_seconds"] == pytest.approx(slow.time, abs=0.1) and slow.time <= max(60.0, least)
    assert bool(found["left_out"]) == cut
    lines = [line for line in forecast_table(found).splitlines() if line.startswith("left out ")]
    assert len(lines) == cut and all(what in lines[0] for what in found["left_out"])
    assert 0 < found["bytes_low"] <= found["bytes"] <= found["bytes_high"]
    assert ("stage2_seconds" in found) == (seconds < 1)


@pytest.mark.parametrize("seconds", [900.0, 2400.0])
def test_the_probes_are_tuned_in_time(seconds: float, teacher: dict[str, str], tmp_path: Path) -> None:
    """All probes of both kinds together keep to their share, where a pass of the teacher takes a second."""
    data, changes = make_dataset(tmp_path / "data", images=32), {"cache.calibration_views": 32}
    cfg, sections = load_config(str(make_config(data, teacher, detector("retinanet"), tmp_path, "frs", **changes)))
    slow = SlowMachine(1.0)
    sample = TimedSample(open_job(cfg, sections, lambda _: None, Silent()), Clock(60.0, slow.now), seconds, 1.0)
    handle = torch.nn.modules.module.register_module_forward_hook(slow.add)
    try:
        for what in ("feature", "score"):
            sample.probes("choosing", [what])
    finally:
        handle.remove()
    assert 0.1 * PROBE_SHARE * seconds < slow.time <= PROBE_SHARE * seconds


def test_the_training_of_a_network_ends_in_time(made: dict[str, Path]) -> None:
    """It has a share of the time that is left when it begins."""
    cfg, sections = load_config(str(made["frs"]))
    slow = SlowMachine(0.0)
    clock = Clock(60.0, slow.now)
    job = open_job(cfg, sections, lambda _: None, Silent())
    steps = 0
    sample = TimedSample(job, clock, 30.0, 1e-6)
    after = sample.training(1000)
    while after() is not False:
        steps += 1
        slow.time += 0.1
    assert steps * 0.1 == pytest.approx(30 * TRAINING_SHARE, abs=0.2)
    assert sample.training_seconds == pytest.approx(1000 * 0.1, rel=0.01)  # of all steps
    assert list(clock.left_out) == [f"{999 - steps} of 1000 training steps of the score network"]


def test_training_a_network_counts_once_for_any_number_of_views() -> None:
    """A trial calibrates on 16 views for 40 s, 8 of which train a network; stage 1 calibrates on 64."""
    trial: Any = SimpleNamespace(calibration_views=64, calibrated_on=16, calibration_seconds=40, training_seconds=8)
    trial.teacher_seconds, trial.views_per_second = 0.0, 10.0
    found = {"images": 50, "distinct_views": 100, "images_per_epoch": 50, "bytes_per_view": 1.0}
    sections: Any = SimpleNamespace(teacher=SimpleNamespace(gate_images=5))
    cfg: Any = {"train_cfg": {"max_epochs": 1}}
    trained: Any = SimpleNamespace(images_per_second=1.0, live_seconds=1.0)
    loader = Config({**cfg, "train_dataloader": {"batch_size": 1}})
    assert estimate_hours(trial, trained, found, sections, loader)["stage1_seconds"] == 10 + 8 + 4 * 32
