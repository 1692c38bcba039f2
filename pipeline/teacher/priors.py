"""What the score channels of one FPN position stand for: anchors of certain sizes in a certain order, or one point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.mmdet_compat.registry import MODELS, Config, build

TOLERANCE = 0.01  # pixels
GENERATORS = ("prior_generator", "square_anchor_generator")  # guided anchoring and SABL use the second name


@dataclass(frozen=True)
class Priors:
    """The priors of a dense head.

    kind: 'anchors', 'points', or 'positions' for a head without a generator. anchors[l]: (A, 4) boxes of one position
    of level l, in pixels relative to it, in the order of the score channels; empty unless kind is 'anchors'.
    strides[l]: pixels between two positions, (x, y). offset: of points within their cell, as a fraction of the stride.
    """

    kind: str
    anchors: tuple[Tensor, ...] = ()
    strides: tuple[tuple[float, float], ...] = ()
    offset: float = 0.0

    def difference(self, teacher: Priors) -> str | None:
        """Describe the first difference to the teacher's priors; None if score channels mean the same."""
        if self.kind != teacher.kind:
            return f"the student's head uses {self.kind}, the teacher's {teacher.kind}"
        for level, (own, wanted) in enumerate(zip(self.anchors, teacher.anchors)):
            if len(own) != len(wanted):
                return f"the student has {len(own)} anchors a position, the teacher {len(wanted)}"
            wrong = (own - wanted).abs().amax(dim=1) > TOLERANCE
            if bool(wrong.any()):
                first = int(wrong.nonzero()[0])
                return (
                    f"level {level}, anchor {first}: the student's is {_size(own[first])}, the teacher's "
                    f"{_size(wanted[first])}"
                )
        for level, (here, there) in enumerate(zip(self.strides, teacher.strides)):
            if here != there:
                return f"level {level}: the student's {self.kind} are {here} px apart, the teacher's {there} px"
        if self.offset != teacher.offset:
            return f"the student's points are at {self.offset:g} of a stride, the teacher's at {teacher.offset:g}"
        return None


def _size(box: Tensor) -> str:
    left, top, right, bottom = box.tolist()
    return f"{right - left:.4g} x {bottom - top:.4g} px around ({(left + right) / 2:.4g}, {(top + bottom) / 2:.4g})"


def priors_of(head: nn.Module) -> Priors:
    """Return the priors of a built head."""
    generator: Any = next((getattr(head, name) for name in GENERATORS if getattr(head, name, None) is not None), None)
    if generator is None:
        return Priors("positions")
    pairs = [s if isinstance(s, tuple | list) else (s, s) for s in getattr(generator, "strides", None) or ()]
    strides = tuple((float(x), float(y)) for x, y in pairs)
    anchors = getattr(generator, "base_anchors", None)
    if anchors is None:
        return Priors("points", (), strides, float(getattr(generator, "offset", 0.0)))
    return Priors("anchors", tuple(x.detach().cpu().float() for x in anchors), strides)


def configured_priors(model: Config) -> Priors:
    """Return the priors of the dense head of a detector's config. Builds that head, without weights of a checkpoint.

    Raise ConfigError where it cannot be built.
    """
    part = "rpn_head" if model.get("rpn_head") else "bbox_head"
    train, test = model.get("train_cfg") or {}, model.get("test_cfg") or {}
    if part == "rpn_head":  # as mmdet's TwoStageDetector builds it
        train, test = train.get("rpn"), test.get("rpn")
    head = {**model[part], "train_cfg": train or None, "test_cfg": test or None}
    if part == "rpn_head":
        head["num_classes"] = 1
    with torch.random.fork_rng(devices=[]):
        return priors_of(build(MODELS, head, f"the teacher's {part}"))
