"""The teacher: found by name or by files, loaded strictly, measured, and reduced to backbone, neck and class head."""

from pipeline.teacher.model import Teacher, own_device
from pipeline.teacher.zoo import TeacherSpec, find_teacher

__all__ = ["Teacher", "TeacherSpec", "find_teacher", "own_device"]
