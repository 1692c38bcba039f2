"""The sweep over mmdet's zoo: what it calls an obstacle, what it runs once, and how its page counts."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import zoo, zoo_checks, zoo_keys
from benchmarks.zoo_page import page, shape_of
from pipeline.data import views

SETTINGS = ("data", "views", "replay", "schedule", "hooks", "metric")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def settings(name: str, data: Path, folder: Path) -> dict[str, Any]:
    """The outcomes of a config's settings."""
    return zoo.try_settings(name, data, folder)


def test_a_stock_config_has_no_obstacle(data: Path, tmp_path: Path) -> None:
    row = settings("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", data, tmp_path)
    assert [row[part] for part in SETTINGS] == [None] * len(SETTINGS)


def test_obstacles_are_kept_with_their_line(data: Path, tmp_path: Path) -> None:
    row = settings("yolox/yolox_tiny_8xb8-300e_coco.py", data, tmp_path)
    for part, line in (("data", "MultiImageMixDataset"), ("views", "Mosaic"), ("schedule", "BatchSyncRandomResize")):
        kind, text = row[part]
        assert kind == "refused" and line in text and "\n" not in text
    assert settings("yolox/yolox_tta.py", data, tmp_path)["load"][0] == "refused"


def test_a_view_that_differs_is_a_fault(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ssd/ssd300_coco.py"  # seeded draws
    assert settings(name, data, tmp_path)["replay"] is None
    monkeypatch.setattr(views, "seeded", lambda seed: contextlib.nullcontext())
    kind, line = settings(name, data, tmp_path)["replay"]
    assert kind == "fault" and ("differ" in line or "planned" in line)


def test_detectors_that_differ_in_size_only_run_once(data: Path, tmp_path: Path) -> None:
    def key(name: str) -> str:
        cfg, _ = zoo_checks.read_config(zoo.ZOO / name, tmp_path)
        zoo_keys.make_light(cfg)
        return zoo_keys.key_of(cfg)

    base = key("retinanet/retinanet_r50_fpn_1x_coco.py")
    assert base == key("retinanet/retinanet_r101_fpn_2x_coco.py")
    assert base != key("atss/atss_r50_fpn_1x_coco.py")
    assert base != key("pafpn/faster-rcnn_r50_pafpn_1x_coco.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet/retinanet_r18_fpn_1x_coco.py", "tood/tood_r50_fpn_1x_coco.py"])
def test_a_detector_teaches_and_learns(name: str, data: Path, tmp_path: Path) -> None:
    found = zoo.try_model(name, data, tmp_path)
    assert (found["build"], found["teacher"], found["student"]) == (None, None, None)


def test_the_page_counts_what_the_rows_say() -> None:
    sound = dict.fromkeys(("load", "build", "teacher", "student", *SETTINGS))
    line = ["refused", "transform Mosaic: mixes images (2 of [1, 2]) in /tmp/x/a.json"]
    no_scores, other = ["refused", "DETRHead: gives no class scores"], ["refused", "student differs"]
    rows = [
        {"name": "a/one.py", **sound},
        {"name": "a/two.py", **{key: value for key, value in sound.items() if key != "replay"}, "views": line},
        {"name": "b/three.py", **sound, "student": ["fault", "KeyError: 'x'"], "features": ["fault", "KeyError: 'x'"]},
        {"name": "c/six.py", **sound, "teacher": no_scores, "student": no_scores, "features": None},
        {"name": "c/seven.py", **sound, "teacher": no_scores, "student": no_scores, "features": other, "data": line},
        {"name": "c/eight.py", **sound, "teacher": no_scores, "student": no_scores, "features": None, "data": line},
        {"name": "b/four.py", "load": ["refused", "no model"]},
        {"name": "b/five.py", "load": None, **dict.fromkeys(SETTINGS)},
    ]
    machine = {"cores": 2, "python": "3", "torch": "2", "date": "today"}

    text = page(json.loads(json.dumps({"machine": machine, "models": 3, "rows": rows})))

    assert "Of 8 configs, 6 are detectors that load and build.\n2 of these work as teacher and as student with" in text
    assert "with class scores, and 2 others with features only: 4 in all.\n1 configs pass every check" in text
    assert "and 1 others with features only.\n1 configs ended in a traceback." in text
    assert "The detectors of 1 other configs have not been run yet." in text
    assert "| a | 2 | 2 | 2 | 2 | 0 | 2 | 1 | 2 | 2 | 2 | 2 | 1 | 0 |" in text
    assert "| c | 3 | 3 | 0 | 0 | 2 | 1 | 3 | 3 | 3 | 3 | 3 | 0 | 1 |" in text
    assert "| all | 8 | 6 | 3 | 2 | 2 | 4 | 5 | 6 | 6 | 6 | 6 | 1 | 1 |" in text
    assert f"| 1 | views | refused | {shape_of(line[1])} |" in text and "a.json" not in shape_of(line[1])
    assert "| 3 | teacher | refused | DETRHead" in text and "| student | refused | DETRHead" not in text
    assert "| 1 | features | refused | student differs |" in text and text.count("KeyError") == 1
