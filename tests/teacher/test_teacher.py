"""Checkpoints: read without running them, loaded without a key left over, classes in label order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer

from pipeline.errors import ConfigError, TeacherError
from pipeline.sections import TeacherSection
from pipeline.teacher.class_names import classes_of
from pipeline.teacher.model import Teacher
from pipeline.teacher.weights import read_checkpoint
from pipeline.teacher.zoo import find_teacher
from tests.helpers.datasets import CLASSES
from tests.helpers.detectors import detector, save_teacher

CPU = torch.device("cpu")


def test_mmengine_history_becomes_inert(teacher: dict[str, str], tmp_path: Path) -> None:
    """An ordinary mmengine checkpoint (pickled HistoryBuffer) gives the same weights; torch alone refuses it."""
    plain, meta = read_checkpoint(Path(teacher["checkpoint"]))
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    hub = {"log_scalars": {"train/loss": history}, "runtime_info": {"lr": np.float64(0.1)}}
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": plain, "meta": meta, "message_hub": hub}, path)
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(path, weights_only=True)
    state, again = read_checkpoint(path)
    assert state.keys() == plain.keys() and all(torch.equal(state[k], plain[k]) for k in plain)
    assert classes_of(again) == CLASSES


def test_label_order_matters(teacher: dict[str, str]) -> None:
    spec = find_teacher(TeacherSection(**teacher))
    Teacher(spec, CLASSES, CPU)
    with pytest.raises(TeacherError, match="label order"):
        Teacher(spec, CLASSES[::-1], CPU)


def test_teacher_is_frozen_and_padded_alone(teacher: dict[str, str]) -> None:
    """Views of other shapes in the same call change nothing, and positions beyond a view's own grid weigh nothing."""
    built = Teacher(find_teacher(TeacherSection(**teacher)), CLASSES, CPU)
    assert not any(p.requires_grad for p in built.detector.parameters()) and not built.detector.training
    torch.manual_seed(0)
    views = [torch.randint(0, 255, (3, h, w), dtype=torch.uint8) for h, w in ((60, 90), (96, 50), (64, 96))]
    together, alone = built.by_shape(views), [built([view]) for view in views]
    for b, single in enumerate(alone):
        for level, (h, w) in enumerate(single.levels):
            assert torch.allclose(together.features[level][b, :, :h, :w], single.features[level][0], atol=1e-5)
            assert torch.allclose(together.frs[level][b, :h, :w], single.frs[level][0], atol=1e-6)
            assert together.frs[level][b, h:].sum() == 0 and together.frs[level][b, :, w:].sum() == 0
    with pytest.raises(ValueError, match="one padded shape"):
        built(views)


def test_gate_scores_only_what_was_shown(data: Path, tmp_path: Path) -> None:
    """The teacher's mAP on a subset must not be divided by the objects of all images."""
    from pipeline.mmdet_compat.registry import Config
    from pipeline.teacher import gate
    from tests.helpers.configs import make_config

    files = save_teacher(tmp_path, detector("retinanet"))
    cfg = Config.fromfile(make_config(data, files, detector("retinanet"), tmp_path))
    oracle = _Oracle(data)
    assert gate.measure(oracle, cfg, 3) == {"mAP": 1.0, "AP50": 1.0, "images": 3}
    assert oracle.seen == 3


class _Oracle(torch.nn.Module):
    """Predicts the annotated boxes, so that its mAP is 1 on whatever it is shown."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        self.seen = 0

    def test_step(self, batch: dict) -> list:
        for sample in batch["data_samples"]:
            self.seen += 1
            truth = sample.gt_instances
            found = truth.clone()
            found.bboxes = truth.bboxes.tensor  # already in the file's pixels: loaded after the resize, as mmdet does
            found.scores = torch.ones(len(truth.labels))
            sample.pred_instances = found
        return batch["data_samples"]


def test_a_size_that_the_detector_cannot_compute_is_named(
    teacher: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FPG, for example, needs views of multiples of 64 or more."""
    made = Teacher(find_teacher(TeacherSection(**teacher)), CLASSES, CPU)

    class Picky(torch.nn.Module):
        def forward(self, levels: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            larger = levels[2] + levels[3].repeat_interleave(2, 2).repeat_interleave(2, 3)
            return (*levels[:2], larger, *levels[3:])

    for detector_ in (made.detector, made._meta_copy):
        detector_.neck = torch.nn.Sequential(detector_.neck, Picky())
    made([torch.zeros(3, 128, 128, dtype=torch.uint8)])
    with pytest.raises(
        ConfigError,
        match=r"RetinaNet: no dense class scores for views of 96x32.*size_divisor=128.*(size of tensor|broadcast)",
    ):
        made([torch.zeros(3, 90, 30, dtype=torch.uint8)])
