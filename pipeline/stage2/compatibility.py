"""Check that a student can learn from the teacher's outputs: equal FPN grids, and equal meaning of every score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from pipeline.data.view_record import PAD
from pipeline.errors import StudentError
from pipeline.losses.ld import bins_of
from pipeline.records import LevelShapes
from pipeline.sections import DistillSection
from pipeline.teacher.heads import class_head, copy_to_meta, require_logits, shapes_of
from pipeline.teacher.priors import Priors, priors_of

VIEWS_CHECKED = 4  # padded shapes; each is a pass of the student, on torch's meta device where it runs there

Grids = tuple[tuple[tuple[int, int], LevelShapes], ...]  # (padded (H, W), the teacher's FPN grids) of some views


@dataclass(frozen=True)
class TeacherLayout:
    """The shapes of the teacher's outputs.

    grids: the teacher's FPN grids for padded views, at least one. channels: C of every level. score_channels: K, 0
    without scores.
    priors: None if no loss of the head needs them. bins: of one side of a box distribution, 0 if it is not compared.
    """

    grids: Grids
    channels: tuple[int, ...]
    score_channels: int
    priors: Priors | None
    bins: int = 0

    @property
    def levels(self) -> int:
        return len(self.grids[0][1])


def distinct_grids(views: Iterable[tuple[tuple[int, int], LevelShapes]]) -> Grids:
    """Return the first VIEWS_CHECKED distinct padded shapes with their grids."""
    found: dict[tuple[int, int], LevelShapes] = {}
    for pad, levels in views:
        found.setdefault(pad, levels)
        if len(found) == VIEWS_CHECKED:
            break
    return tuple(found.items())


def check_student(student: nn.Module, teacher: TeacherLayout, distill: DistillSection) -> tuple[int, ...]:
    """Return the widths of the student's levels, of each that is paired with one of the teacher's.

    Raise StudentError where its outputs do not match the teacher's.

    With a loss on scores or boxes, these must mean the same, which needs the same anchors.
    """
    scores = distill.score_weight > 0
    _check_pairs(student, distill)
    copy, widths = copy_to_meta(student, scores), tuple[int, ...]()
    for (height, full_width), wanted in teacher.grids:
        levels, widths, own_scores = shapes_of(copy, (height, full_width), scores)
        levels, widths = _choose(levels, widths, distill.student_levels)
        if len(levels) != len(wanted):
            raise StudentError(
                f"student has {len(levels)} FPN levels, the teacher's outputs have {len(wanted)}; change the neck, or "
                "set distill.student_levels"
            )
        if levels != wanted and not distill.interpolate:
            raise StudentError(
                f"student's FPN grids for a view of {full_width}x{height} are {_text(levels)}, the teacher's are "
                f"{_text(wanted)}; use the teacher's strides (backbone.out_indices, neck.start_level, num_outs)"
            )
        if scores and own_scores != teacher.score_channels:
            raise StudentError(
                f"student has {own_scores} class score channels a position, the teacher's outputs have "
                f"{teacher.score_channels}: classes and anchors must be the same"
            )
    if scores or distill.box_weight:
        require_logits(student)
        _check_head(class_head(student), teacher, distill)
    return widths


def _check_head(head: nn.Module, teacher: TeacherLayout, distill: DistillSection) -> None:
    """Raise StudentError where outputs of the student's head mean something else than the teacher's."""
    difference = priors_of(head).difference(teacher.priors) if teacher.priors else None
    if difference:
        raise StudentError(
            f"score channels of student and teacher have other meanings: {difference}; use the teacher's anchor "
            "settings, or set distill.score_weight=0"
        )
    bins = bins_of(head) if distill.box_weight else 0
    if bins != teacher.bins:
        raise StudentError(
            f"student's box distributions have {bins} bins a side, the teacher's {teacher.bins}; use the same reg_max"
        )


def _check_pairs(student: nn.Module, distill: DistillSection) -> None:
    """Raise StudentError for pairs of levels that cannot be compared."""
    if (distill.score_weight or distill.box_weight) and (distill.student_levels or distill.interpolate):
        raise StudentError(
            "distill.student_levels and interpolate pair features only; set distill.score_weight=0 and box_weight=0"
        )
    preprocessor = getattr(student, "data_preprocessor", None)
    divisor = getattr(preprocessor, "pad_size_divisor", PAD)
    if distill.interpolate and (divisor != PAD or getattr(preprocessor, "batch_augments", None)):
        raise StudentError(
            f"distill.interpolate needs the teacher's padding: set model.data_preprocessor.pad_size_divisor to {PAD} "
            f"(found {divisor}) and remove batch_augments"
        )


def _choose(
    levels: LevelShapes, widths: tuple[int, ...], chosen: Sequence[int] | None
) -> tuple[LevelShapes, tuple[int, ...]]:
    """Return the student's levels that are paired with the teacher's, and their widths."""
    if chosen is None:
        return levels, widths
    wrong = [n for n in chosen if not -len(levels) <= n < len(levels)]
    if wrong:
        raise StudentError(f"distill.student_levels: the student has {len(levels)} FPN levels, found level {wrong[0]}")
    return tuple(levels[n] for n in chosen), tuple(widths[n] for n in chosen)


def _text(levels: LevelShapes) -> str:
    return ", ".join(f"{w}x{h}" for h, w in levels)
