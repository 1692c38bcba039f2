"""The README's three ways to open a shard run as printed, and agree."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import Blosc

from tests.helpers.paths import ROOT

README = (ROOT / "README.md").read_text()


def block(word: str) -> str:
    """The one Python block of the README that mentions `word`."""
    found = [code for code in re.findall(r"```python\n(.*?)```", README, re.S) if word in code]
    assert len(found) == 1
    return found[0]


def test_three_readers(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(made["lossless"].parent / "cache", tmp_path / "work_dirs/demo/cache")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block("TarStore"), names)
    in_place = names["group"]
    monkeypatch.chdir(tmp_path / "work_dirs/demo/cache/pass-0")
    subprocess.run(["tar", "-xf", "shard-00000.tar"], check=True)
    unpacked = zarr.open_group(".", mode="r")
    streamed: dict = {}
    exec(
        block("group_by_keys").replace("    print(", "    samples[sample['__key__']] = sample\n    print("),
        streamed := {"samples": {}},
    )
    samples = streamed["samples"]
    assert len(samples) == in_place["features"].shape[0] == len(capsys.readouterr().out.splitlines()) - 1
    for key, sample in samples.items():
        for name in ("features", "scores", "frs", "record", "thumbnail"):
            array = in_place[name]
            raw = sample[name][:-4]
            raw = Blosc().decode(raw) if name in ("features", "scores", "frs") else raw
            alone = np.frombuffer(raw, array.dtype).reshape(array.shape[1:])
            np.testing.assert_array_equal(alone, array[int(key)])
            np.testing.assert_array_equal(alone, unpacked[name][int(key)])
