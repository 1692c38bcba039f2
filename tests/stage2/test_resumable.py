"""A value of another type in a checkpoint or annotation file ends in one line, before an epoch is spent."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.coco import check_annotations
from pipeline.errors import DataError, PipelineError, StudentError
from pipeline.stage2.resumable import find_wrong_value, require_optimizer_values
from tests.helpers import reseal
from tests.helpers.odd_values import ODD, Path_, leaves, replaced
from tests.helpers.stages import stage2

LONGEST = 1500  # characters of a message


def saved(config: Path, work: Path) -> dict[str, Any]:
    """Train one epoch. Return its checkpoint."""
    stage2(config, work_dir=str(work), **{"optim_wrapper.optimizer.momentum": 0.9})
    return torch.load(work / "epoch_1.pth", weights_only=True)


def places(content: dict[str, Any]) -> list[Path_]:
    """Return the paths to the values of a checkpoint, but for the text of its config and all but a few weights."""
    found = []
    for at in leaves({key: value for key, value in content.items() if key != "state_dict"}):
        many = at[0] == "optimizer" and len(at) > 2 and at[1] == "state" and at[2] != 0
        if not many and at[:2] not in (("meta", "cfg"), ("meta", "dataset_meta")):
            found.append(at)
    return [*found, ("state_dict",), ("state_dict", next(iter(content["state_dict"])))]


def resume(config: Path, work: Path, content: dict[str, Any], at: Path_, odd: str) -> bool:
    """Resume from a changed checkpoint for one more epoch. Return whether it was refused."""
    path = work / "changed.pth"
    torch.save(replaced(content, at, ODD[odd]), path)
    options = {"train_cfg.max_epochs": 2, "optim_wrapper.optimizer.momentum": 0.9}
    try:
        stage2(config, str(path), work_dir=str(work / "resumed"), **options)
    except PipelineError as error:
        assert len(str(error)) < LONGEST and "\n" not in str(error), (at, odd)
        return True
    except Exception as error:
        raise AssertionError(f"{at} {odd}: {type(error).__name__}: {error}") from error
    return False


def test_a_checkpoint(made: dict[str, Path], tmp_path: Path) -> None:
    content = saved(made["frs"], tmp_path)
    assert find_wrong_value(content) is None
    todo = [(at, odd) for at in places(content) for odd in ODD]
    chosen = [pair for pair in random.Random(2).sample(todo, 200) if find_wrong_value(changed(content, *pair))]
    assert len(chosen) > 50
    assert all(resume(made["frs"], tmp_path, content, *pair) for pair in chosen[:3])


def changed(content: dict[str, Any], at: Path_, odd: str) -> dict[str, Any]:
    return replaced(content, at, ODD[odd])


@pytest.mark.slow
def test_every_value_of_a_checkpoint(made: dict[str, Path], tmp_path: Path) -> None:
    content = saved(made["frs"], tmp_path)
    todo = [(at, odd) for at in places(content) for odd in ODD]
    refused = [resume(made["frs"], tmp_path, content, *pair) for pair in random.Random(3).sample(todo, 150)]
    assert 20 < sum(refused) < 150


def test_the_state_of_an_optimizer() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    require_optimizer_values(state, optimizer)
    wrong: dict[Path_, Any] = {
        ("state", 0, "exp_avg"): torch.zeros(3, 2),
        ("state", 0, "step"): "1",
        ("state", 1): {},
        ("state",): [],
        ("param_groups", 0, "lr"): "0.1",
        ("param_groups", 0, "weight_decay"): float("nan"),
        ("param_groups", 0, "betas"): [0.9],
        ("param_groups", 0, "amsgrad"): 1,
    }
    for at, value in wrong.items():
        with pytest.raises(StudentError, match=r"checkpoint: invalid .* of its optimizer"):
            require_optimizer_values(replaced(copy.deepcopy(state), at, value), optimizer)


def test_annotations(data: Path, tmp_path: Path) -> None:
    whole, path = json.loads((data / "annotations.json").read_bytes()), tmp_path / "annotations.json"
    todo = [(at, odd) for at in leaves(whole) for odd in ODD]
    todo, refused = random.Random(5).sample(todo, 150), 0
    for at, odd in todo:
        path.write_bytes(reseal.text_of(replaced(whole, at, ODD[odd])))
        try:
            check_annotations(path, evaluated=True).require_classes(("person",))
        except DataError as error:
            assert len(str(error)) < LONGEST, (at, odd)
            refused += 1
    assert len(todo) // 2 < refused < len(todo)
    for part in ("annotations", "categories"):  # pycocotools converts it to a float
        path.write_text(json.dumps(replaced(whole, (part, 0, "id"), 10**399)))
        with pytest.raises(DataError, match="id must be a whole number below 2"):
            check_annotations(path)
