"""Fixtures that many tests share; the builders behind them lie in tests/helpers/.

Scripts outside the suite import the builders from here. Nothing here imports torch or mmdet before a test needs it:
the controller of pytest-xdist reads this file as well, and each import costs seconds.
"""

from __future__ import annotations

import ast
import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.mmdet_compat.yapf_grammar import import_yapf
from tests.helpers.configs import make_config
from tests.helpers.datasets import CLASSES, make_dataset
from tests.helpers.detectors import detector, save_teacher
from tests.helpers.stages import begin_cache, stage1

if TYPE_CHECKING:
    import torch

__all__ = ["CLASSES", "detector", "make_config", "make_dataset", "save_teacher", "stage1"]

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; sums depend on the number of threads


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the garbage collector the objects of torch and mmdet: mmdet collects for each data set that it loads."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def plain_config_text() -> Iterator[None]:
    """Lay out the text of configs with `ast` instead of yapf, which takes half of the time of a short run.

    Processes that tests start keep yapf.
    """

    def format_code(text: str, **_: Any) -> tuple[str, bool]:
        return ast.unparse(ast.parse(text)) + "\n", True

    import_yapf()  # two workers of pytest start at the same moment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yapf.yapflib.yapf_api.FormatCode", format_code)  # mmengine imports it where it formats
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A thin RetinaNet teacher: 16 FPN channels, 9 x 3 score channels."""
    return save_teacher(tmp_path_factory.mktemp("teacher"), detector("retinanet", depth=18))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, data: Path, teacher: dict[str, str]) -> dict[str, Path]:
    """A finished cache of each codec, shared by tests that only read: {'frs': config, 'lossless': config}."""
    found = {}
    for codec in ("frs", "lossless"):
        work = tmp_path_factory.mktemp(codec)
        found[codec] = make_config(data, teacher, detector("retinanet"), work, codec)
        stage1(found[codec])
    return found


@pytest.fixture(scope="session")
def made_1(tmp_path_factory: pytest.TempPathFactory, data: Path, teacher: dict[str, str]) -> dict[str, Path]:
    """The same of format version 1, as an older release began them."""
    found = {}
    for codec in ("frs", "lossless"):
        work = tmp_path_factory.mktemp(f"{codec}-1")
        found[codec] = make_config(data, teacher, detector("retinanet"), work, codec)
        begin_cache(found[codec], 1)
        stage1(found[codec])
    return found


@pytest.fixture(params=[2, 1], ids=["version 2", "version 1"])
def of_version(request: pytest.FixtureRequest) -> dict[str, Path]:
    """The caches of `made` in each format version."""
    return request.getfixturevalue("made" if request.param == 2 else "made_1")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "where tests marked gpu run; cpu: the same tests on any machine"
    parser.addoption("--device", choices=("cuda", "cpu"), default="cuda", help=text)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where tests marked `gpu` run. `--device cpu` hides a GPU from all code of this process."""
    import torch

    from pipeline.teacher.model import own_device

    if request.config.getoption("--device") == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device; --device cpu runs the same tests without one")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses deterministic mode
        torch.cuda.init()
        yield own_device()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr("mmengine.device.utils.DEVICE", "cpu")  # chosen when mmengine was imported
        yield own_device()
