"""What cannot be resumed is refused before the first step: other structures, another optimizer, other groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import StudentError
from pipeline.mmdet_compat.registry import Config
from pipeline.stage2.resume import check_starting_weights, require_same_optimizer

SOUND: dict[str, Any] = {
    "meta": {"epoch": 1, "iter": 3},
    "state_dict": {},
    "optimizer": {},
    "frs": {"passes": {"0": "a"}},
}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"meta": None}, "meta"),
        ({"meta": {"epoch": 1}}, "meta"),
        ({"meta": {"epoch": 1, "iter": "3"}}, "meta.iter"),
        ({"frs": [1]}, "frs"),
        ({"frs": {"passes": [1]}}, "frs.passes"),
        ({"optimizer": None}, "optimizer"),
        ({"state_dict": None}, "state_dict"),
    ],
)
def test_other_structures(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({**SOUND, **change}, path)
    cfg = Config({"resume": True, "load_from": str(path), "model": {}})
    with pytest.raises(StudentError, match=f"not a checkpoint of stage 2 .no valid {what}.; drop --resume"):
        check_starting_weights(cfg, torch.nn.Identity(), {"passes": {"0": "a"}, "content": "a"})


def optimizer(kind: Callable[..., Any], groups: int = 1) -> Any:
    return kind([{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(groups)], lr=0.1)


def test_another_optimizer() -> None:
    sgd, adam = optimizer(torch.optim.SGD), optimizer(torch.optim.AdamW)
    require_same_optimizer(optimizer(torch.optim.SGD).state_dict(), sgd)
    with pytest.raises(
        StudentError, match=r"another optimizer .its settings: momentum. than this config's AdamW .betas"
    ):
        require_same_optimizer(sgd.state_dict(), adam)
    with pytest.raises(StudentError, match="other groups of parameters"):
        require_same_optimizer(optimizer(torch.optim.SGD, 2).state_dict(), sgd)
