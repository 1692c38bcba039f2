"""The README's three ways to open a shard run as printed, and agree."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.cache.items import split_items
from pipeline.cache.reader import ShardReader
from tests.helpers.paths import ROOT

README = (ROOT / "README.md").read_text()


def block(word: str) -> str:
    """The one Python block of the README that mentions `word`."""
    found = [code for code in re.findall(r"```python\n(.*?)```", README, re.S) if word in code]
    assert len(found) == 1
    return found[0]


@pytest.mark.filterwarnings("ignore:The data type")
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
    code = block("WebDataset").replace("        print(", "        samples[sample['__key__']] = sample\n        print(")
    exec(code, streamed := {"samples": {}})
    samples = streamed["samples"]
    assert len(samples) == in_place["index/record"].shape[0] == len(capsys.readouterr().out.splitlines()) - 1 > 0
    reader = ShardReader(Path("shard-00000.tar"))
    for key, sample in samples.items():
        index = int(key.removeprefix("samples/"))
        wanted = [bytes(item) for item in reader.chunks(index).values()]
        assert [bytes(item) for item in split_items(memoryview(sample["0"]), len(wanted))] == wanted
        assert list(in_place["samples"][index]) == list(unpacked["samples"][index]) == wanted
    np.testing.assert_array_equal(in_place["index/record"][:], unpacked["index/record"][:])
