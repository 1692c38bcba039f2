"""Import timm where no torchvision works: timm needs it for data augmentation only, which no test uses."""

from __future__ import annotations

import enum
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import pytest

NAMES = ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc", ".datasets")


class InterpolationMode(enum.Enum):
    """The names that timm looks up while it is imported."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class EmptyPackage(ModuleType):
    """A module in which every name is an empty class."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def import_timm() -> Any:
    """Return timm. Skip the test where it is not installed."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for part in NAMES:
            module: Any = EmptyPackage(f"torchvision{part}")
            module.__spec__ = ModuleSpec(module.__name__, None)
            parent, _, child = module.__name__.rpartition(".")
            sys.modules[module.__name__] = module
            if parent:
                setattr(sys.modules[parent], child, module)
            if child == "functional":
                module.InterpolationMode = InterpolationMode
    try:
        return pytest.importorskip("timm")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            if isinstance(sys.modules[name], EmptyPackage):
                del sys.modules[name]
