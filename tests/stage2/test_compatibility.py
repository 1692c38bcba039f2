"""A student learns from the teacher's outputs only where grids are equal and every score means the same."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.errors import StudentError
from pipeline.mmdet_compat.registry import MODELS, Config
from pipeline.sections import DistillSection
from pipeline.stage2.compatibility import check_student
from pipeline.stage2.teacher_data import TeacherData, prepare_teacher_data
from pipeline.teacher.priors import Priors, priors_of
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector, save_teacher

CUBE_ROOT = 2 ** (1 / 3)
ANCHORS = "bbox_head.anchor_generator"
SCORES, FEATURES = DistillSection(1.0, 1.0), DistillSection(1.0, 0.0)
P2_TO_P6 = {"neck.start_level": 0, f"{ANCHORS}.strides": [4, 8, 16, 32, 64]}


@pytest.fixture(scope="module", params=["cache", "live"])
def data_of(request: pytest.FixtureRequest, made: dict[str, Path]) -> TeacherData:
    """The outputs of a RetinaNet with nine anchors on P3 to P7, from both sources."""
    return prepare_teacher_data(*load_config(str(made["lossless"]), {"teacher.source": request.param}))


def student(family: str = "retinanet", **changes: Any) -> Any:
    config = Config({"model": copy.deepcopy(detector(family))})
    config.merge_from_dict({f"model.{key}": value for key, value in changes.items()})
    return MODELS.build(config.model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (P2_TO_P6, r"a view of (64x96 are 16x24|96x64 are 24x16), .* the teacher's are (8x12|12x8), "),
        ({"neck.num_outs": 4, f"{ANCHORS}.strides": [8, 16, 32, 64]}, "4 FPN levels, the teacher's outputs have 5"),
        ({f"{ANCHORS}.ratios": [2.0, 1.0, 0.5]}, "level 0, anchor 0: the student's is"),
        ({f"{ANCHORS}.octave_base_scale": 2}, "level 0, anchor 0: the student's is"),
        ({f"{ANCHORS}.ratios": [1.0]}, "class score channels a position"),
        (
            {f"{ANCHORS}.ratios": [0.5, 1, 2, 3, 4, 5, 6, 7, 8], f"{ANCHORS}.scales_per_octave": 1},
            "level 0, anchor 1: the student",
        ),
        ({f"{ANCHORS}.center_offset": 0.5}, "level 0, anchor 0: the student's is"),
        (
            {f"{ANCHORS}.strides": [4, 8, 16, 32, 64], f"{ANCHORS}.base_sizes": [8, 16, 32, 64, 128]},
            r"level 0: the student's anchors are \(4.0, 4.0\) px apart, the teacher's \(8.0, 8.0\) px",
        ),
    ],
)
def test_what_differs_is_named(data_of: TeacherData, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudentError, match=message):
        check_student(student(**changes), data_of.layout, SCORES)


def test_points_of_another_place_or_stride() -> None:
    from mmdet.registry import TASK_UTILS

    def points(**changes: Any) -> Priors:
        generator = {"type": "MlvlPointGenerator", "strides": [8, 16], "offset": 0.5, **changes}
        return priors_of(SimpleNamespace(prior_generator=TASK_UTILS.build(generator)))  # type: ignore[arg-type]

    assert points().difference(points()) is None
    assert points(offset=0).difference(points()) == "the student's points are at 0 of a stride, the teacher's at 0.5"
    assert "level 1: the student's points are (32.0, 32.0) px apart" in str(
        points(strides=[8, 32]).difference(points())
    )


def test_another_spelling_of_the_same_anchors(data_of: TeacherData) -> None:
    scales = [4, 4 * CUBE_ROOT, 4 * CUBE_ROOT**2]
    same = {"scales": scales, "octave_base_scale": None, "scales_per_octave": None}
    assert check_student(student(**{f"{ANCHORS}.{k}": v for k, v in same.items()}), data_of.layout, SCORES) == (16,) * 5


def test_features_alone_need_equal_grids_only(data_of: TeacherData) -> None:
    check_student(student(**{f"{ANCHORS}.ratios": [1.0]}), data_of.layout, FEATURES)
    check_student(student("fcos"), data_of.layout, FEATURES)
    with pytest.raises(StudentError, match="grids for a view"):
        check_student(student(**P2_TO_P6), data_of.layout, FEATURES)


def test_levels_may_be_paired_in_another_way(data_of: TeacherData) -> None:
    shifted = student(**{**P2_TO_P6, "neck.num_outs": 6, f"{ANCHORS}.strides": [4, 8, 16, 32, 64, 128]})
    check_student(shifted, data_of.layout, replace(FEATURES, student_levels=[1, 2, 3, 4, 5]))
    check_student(student(**P2_TO_P6), data_of.layout, replace(FEATURES, interpolate="bilinear"))
    with pytest.raises(StudentError, match="the student has 5 FPN levels, found level 7"):
        check_student(student(), data_of.layout, replace(FEATURES, student_levels=[0, 1, 2, 3, 7]))
    with pytest.raises(StudentError, match="pair features only; set distill"):
        check_student(student(), data_of.layout, replace(SCORES, student_levels=[0, 1, 2, 3, 4]))
    with pytest.raises(StudentError, match=r"pad_size_divisor to 32 \(found 64\)"):
        check_student(
            student(**{"data_preprocessor.pad_size_divisor": 64}),
            data_of.layout,
            replace(FEATURES, interpolate="nearest"),
        )


def test_one_anchor_is_not_a_point(data: Path, tmp_path: Path) -> None:
    """Both have one score for each class, for different boxes."""
    one = detector("retinanet")
    one["bbox_head"]["anchor_generator"].update(ratios=[1.0], scales_per_octave=1)
    config = make_config(data, save_teacher(tmp_path, one), one, tmp_path)
    layout = prepare_teacher_data(*load_config(str(config), {"teacher.source": "live"})).layout
    check_student(MODELS.build(Config(one)), layout, SCORES)
    with pytest.raises(StudentError, match="the student's head uses points, the teacher's anchors"):
        check_student(student("fcos"), layout, SCORES)
