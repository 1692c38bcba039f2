"""Which mmdet is accepted, and the one line that says so."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import mmdet
import pytest

from pipeline.data.replay import library_versions
from pipeline.errors import ConfigError
from pipeline.mmdet_compat import versions
from pipeline.mmdet_compat.versions import require_mmdet
from tests.helpers.paths import ROOT


def installed(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def test_the_installed_mmdet_is_accepted() -> None:
    require_mmdet()

    assert mmdet.__version__ in installed("mmdet", "onedl-mmdetection").values()


@pytest.mark.parametrize("found", ["2.28.2", "3.2.0", "4.0.0", "3"])
def test_other_versions_are_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmdet, "__version__", found)

    with pytest.raises(ConfigError, match=rf"^mmdet {found} is not supported; expected mmdet 3\.3 .*setuptools<81$"):
        require_mmdet()


@pytest.mark.parametrize("found", ["3.3.0", "3.3.1rc1", "3.10.2+cu130"])
def test_newer_versions_are_accepted(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmdet, "__version__", found)

    require_mmdet()


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0."),
        ModuleNotFoundError("No module named 'mmcv'"),
    ],
)
def test_an_mmdet_that_cannot_be_imported(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(versions.importlib, "import_module", broken)

    with pytest.raises(ConfigError, match=r"cannot be imported: .*mmcv") as caught:
        require_mmdet()
    assert "setuptools<81" in str(caught.value) and "\n" not in str(caught.value)


def test_upstreams_mmengine_needs_pkg_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pkg_resources" else find(name))
    upstream: dict[str, Any] = {"mmengine": "0.10.7"}
    monkeypatch.setattr(versions, "version", upstream.__getitem__)

    with pytest.raises(ConfigError, match=r"mmengine 0\.10\.7 needs pkg_resources.*install setuptools<81"):
        require_mmdet()


def test_a_cache_names_its_mmcv() -> None:
    """Whatever package brings mmcv and OpenCV: they compute the pixels."""
    found = library_versions()

    assert installed("onedl-mmcv", "mmcv", "mmcv-lite").items() <= found.items()
    assert {"numpy", "pillow", "torch"} < found.keys() and any("mmcv" in name for name in found)
    assert any("opencv" in name for name in found)


@pytest.mark.slow
def test_both_stages_end_in_one_line(tmp_path: Path) -> None:
    other = tmp_path / "mmdet" / "__init__.py"
    other.parent.mkdir()
    other.write_text("__version__ = '2.28.2'\n")
    config = str(ROOT / "configs" / "demo" / "retinanet_r101_r50.py")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    for stage in ("stage1", "stage2"):
        command = [sys.executable, "-m", "pipeline", stage, "--config", config]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert done.stderr.startswith("error: mmdet 2.28.2 is not supported; expected mmdet 3.3")
