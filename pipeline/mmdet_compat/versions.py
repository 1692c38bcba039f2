"""Check that the installed mmdet is one that this project runs with."""

from __future__ import annotations

import importlib
import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version

from pipeline.errors import ConfigError, brief

FIRST, NEXT = (3, 3), (4, 0)  # tested: mmdet 3.3.0 and onedl-mmdetection 3.5.1
NEEDED = (
    "expected mmdet 3.3 or newer 3.x: the onedl packages of pyproject.toml, or mmdet 3.3 with mmcv or mmcv-lite 2.1, "
    "mmengine 0.10 and setuptools<81"
)


def require_mmdet() -> None:
    """Import mmdet without its parts. Raise ConfigError that lists the accepted versions where it is not one of them.

    Upstream's mmengine reads configs of packages (`mmdet::`) with pkg_resources, which setuptools 81 removed.
    """
    try:
        found = str(importlib.import_module("mmdet").__version__)  # mmdet asserts the versions of mmcv and mmengine
    except (ImportError, AssertionError, AttributeError) as error:
        raise ConfigError(f"mmdet cannot be imported: {brief(error)}; {NEEDED}") from error
    numbers = tuple(int(n) for n in re.findall(r"\d+", found)[:2])
    if not FIRST <= numbers < NEXT:
        raise ConfigError(f"mmdet {found} is not supported; {NEEDED}")
    if importlib.util.find_spec("pkg_resources") is None and (engine := _installed("mmengine")):
        raise ConfigError(f"mmengine {engine} needs pkg_resources, which is not installed; install setuptools<81")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
