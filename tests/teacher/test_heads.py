"""What counts as a class logit: one channel for each class and prior, and no sigmoid applied yet."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.mmdet_compat.registry import MODELS, Config
from pipeline.sections import TeacherSection
from pipeline.teacher.class_scores import class_logits, logit_of_product, require_class_scores, score_rule
from pipeline.teacher.heads import output_shapes, require_logits
from pipeline.teacher.model import Teacher
from pipeline.teacher.raw_scores import require_raw_scores
from pipeline.teacher.zoo import find_teacher
from tests.helpers.datasets import CLASSES
from tests.helpers.detectors import FAMILIES, detector, save_teacher


@MODELS.register_module(force=True)
class ActivatedHead(MODELS.get("RetinaHead")):
    """Applies the sigmoid itself, as a head of another project may."""

    def forward_single(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, boxes = super().forward_single(x)
        return scores.sigmoid(), boxes


def activated(name: str, parent: str, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Register a head whose first output is changed."""

    def forward_single(self: Any, *inputs: Any) -> tuple[Any, ...]:
        first, *others = kind.__mro__[1].forward_single(self, *inputs)
        return (change(first), *others)

    kind = type(name, (MODELS.get(parent),), {"forward_single": forward_single})
    MODELS.register_module(name=name, module=kind, force=True)
    return name


SATURATED = (
    activated("PercentHead", "RetinaHead", lambda x: 100 * x.sigmoid()),
    activated("LogProbabilityHead", "RetinaHead", torch.nn.functional.logsigmoid),
    activated("LogSoftmaxHead", "RetinaHead", lambda x: x.log_softmax(dim=1)),
    activated("ClampedHead", "RetinaHead", lambda x: x.clamp(-1, 1) - 3),
)
LINEAR = (
    activated("TemperatureHead", "RetinaHead", lambda x: x / 3 - 1),
    activated("CopiedHead", "RetinaHead", lambda x: x.clone().view(x.shape)),
)


@MODELS.register_module(force=True)
class MixedHead(MODELS.get("RetinaHead")):
    """Returns classes and boxes in one tensor, as YOLOv3 does."""

    def forward_single(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, boxes = super().forward_single(x)
        return torch.cat([scores, boxes], dim=1), boxes


def with_head(name: str) -> dict[str, Any]:
    model = copy.deepcopy(detector("retinanet"))
    model["bbox_head"]["type"] = name
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_the_families(family: str) -> None:
    built = MODELS.build(Config(detector(family)))
    built.init_weights()
    built.train()
    require_logits(built)
    assert built.training
    assert output_shapes(built, (64, 96))[2] == {"retinanet": 9 * len(CLASSES), "faster-rcnn": 3}.get(
        family, len(CLASSES)
    )


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("ActivatedHead", r"ActivatedHead: its class scores lie between 0\.\d+ and .* seem to be probabilities"),
        ("MixedHead", r"MixedHead: its first output has \d+ channels, expected 3 classes x 9 priors = 27"),
    ],
)
def test_other_outputs_are_refused_by_name(head: str, message: str, tmp_path: Path) -> None:
    spec = find_teacher(TeacherSection(**save_teacher(tmp_path, with_head(head))))
    with pytest.raises(ConfigError, match=message):
        Teacher(spec, CLASSES, torch.device("cpu"))


def built(name: str) -> Any:
    found = MODELS.build(Config(with_head(name)))
    found.init_weights()
    return found


@pytest.mark.parametrize("head", SATURATED)
def test_scores_that_do_not_follow_their_convolution_are_refused(head: str) -> None:
    with pytest.raises(ConfigError, match=f"{head}: its class scores saturate, so the head applies an activation"):
        require_logits(built(head))


@pytest.mark.parametrize("head", LINEAR)
def test_linear_functions_of_a_logit_are_logits(head: str) -> None:
    require_logits(built(head))


def test_scores_that_are_not_finite() -> None:
    broken = built("RetinaHead")
    torch.nn.init.constant_(broken.bbox_head.retina_cls.bias, float("nan"))
    with pytest.raises(ConfigError, match="RetinaHead: its class scores are NaN or infinite on an image of noise"):
        require_logits(broken)


def test_a_head_that_extends_one_with_probabilities_must_return_them() -> None:
    name = activated("LogitHead", "CenterNetHead", torch.logit)
    head = MODELS.build({"type": name, "in_channels": 8, "feat_channels": 8, "num_classes": 3})
    with pytest.raises(ConfigError, match="LogitHead: extends a head that returns probabilities, but its first output"):
        require_raw_scores(head, [torch.rand(1, 8, 8, 8)])


def test_class_and_objectness_of_yolox_are_multiplied() -> None:
    head = MODELS.build({"type": "YOLOXHead", "num_classes": 3, "in_channels": 8, "feat_channels": 8})
    scores, boxes, objectness = head(tuple(torch.randn(1, 8, n, n) * 9 for n in (8, 4, 2)))
    logits = class_logits(head, (scores, boxes, objectness))
    for found, score, one in zip(logits, scores, objectness):
        expected = score.double().sigmoid() * one.double().sigmoid()
        assert torch.allclose(found.double().sigmoid(), expected, atol=1e-6)
    require_class_scores(head, logits)
    assert score_rule(Config({"bbox_head": {"type": "YOLOXHead"}})) == "class x objectness"
    assert score_rule(Config({"bbox_head": {"type": "RetinaHead"}})) is None


def test_class_and_objectness_of_yolov3_are_taken_from_its_output() -> None:
    head = MODELS.build(
        {
            "type": "YOLOV3Head",
            "num_classes": 2,
            "in_channels": [8, 8, 8],
            "out_channels": [8, 8, 8],
            "anchor_generator": {
                "type": "YOLOAnchorGenerator",
                "base_sizes": [[(116, 90), (156, 198), (373, 326)]] * 3,
                "strides": [32, 16, 8],
            },
        }
    )
    output = head(tuple(torch.rand(1, 8, n, n) for n in (2, 4, 8)))
    logits, level = class_logits(head, output)[1], output[0][1]
    assert level.shape[1] == 3 * 7 and logits.shape == (1, 6, 4, 4)
    for anchor in range(3):
        for kind in range(2):
            product = level[:, 7 * anchor + 4].sigmoid() * level[:, 7 * anchor + 5 + kind].sigmoid()
            assert torch.allclose(logits[:, 2 * anchor + kind].sigmoid(), product, atol=1e-6)
    require_class_scores(head, class_logits(head, output))


def test_the_logit_of_a_product_is_stable() -> None:
    values = torch.tensor([-200.0, -50.0, -1.0, 0.0, 1.0, 14.0, 200.0])
    one, other = torch.meshgrid(values, values, indexing="ij")
    one = one.clone().requires_grad_()
    found = logit_of_product(one, other)
    exact = one.detach().double().sigmoid() * other.double().sigmoid()
    assert torch.isfinite(found).all() and torch.allclose(found.detach().double().sigmoid(), exact, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), one)
    assert torch.isfinite(gradient).all()


def test_probabilities_of_known_heads_become_logits() -> None:
    head = MODELS.build({"type": "CenterNetHead", "in_channels": 8, "feat_channels": 8, "num_classes": 3})
    output = head((torch.rand(1, 8, 8, 8),))
    (probabilities,), logits = output[0], class_logits(head, output)
    assert probabilities.min() > 0 and probabilities.max() < 1
    assert torch.allclose(logits[0].sigmoid(), probabilities, atol=1e-6) and logits[0].min() < 0
    require_class_scores(head, logits)
