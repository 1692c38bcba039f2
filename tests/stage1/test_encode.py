"""The encoder's thread: it takes no other threads, changes no others, and gives the bytes of the caller's thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.codecs.base import Codec
from pipeline.records import TeacherOutput, ViewRecord
from pipeline.stage1 import encode
from pipeline.stage1.encode import BackgroundEncoder, EncodedViews, encode_views
from pipeline.teacher.model import Teacher
from tests.helpers.configs import make_config
from tests.helpers.detectors import detector
from tests.helpers.outputs import calibrated_codec, random_output
from tests.helpers.related import SIZES, related_codec, related_output, short_training
from tests.helpers.stages import stage1, tree

GRIDS = [(16, 24), (8, 12)]


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The caller's number of OpenMP threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["frs2", "frs", "lossless"])
def codec(request: pytest.FixtureRequest) -> Codec:
    with short_training():
        return related_codec(type=request.param) if request.param != "lossless" else calibrated_codec("lossless")


def records(count: int) -> list[ViewRecord]:
    blank = np.zeros((8, 8, 3), np.uint8)
    return [ViewRecord(n, 0, (128, 192), (128, 192), (128, 192), 0, 1, 2, blank) for n in range(count)]


def count_of_new_thread() -> int:
    found: list[int] = []
    thread = Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_only_the_encoder_has_one_openmp_thread(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[int] = []
    monkeypatch.setattr(encode, "_encode", lambda *_: inside.append(torch.get_num_threads()))
    with BackgroundEncoder(calibrated_codec("lossless"), threaded=True) as encoder:
        encoder.submit(random_output(1, GRIDS, 8, 6), [], lambda _: None)
        encoder.finish()
        assert torch.get_num_threads() == count_of_new_thread() == threads
    assert inside == [1] and torch.get_num_threads() == count_of_new_thread() == threads


def test_the_thread_gives_the_same_bytes(threads: int, codec: Codec) -> None:
    output, found = related_output(3, SIZES, seed=5), list[EncodedViews]()
    with BackgroundEncoder(codec, threaded=True) as encoder:
        encoder.submit(output, records(3), found.append)
        encoder.finish()
    wanted = encode_views(codec, output, records(3))
    for a, b in zip(found[0].samples, wanted.samples, strict=True):
        assert {name: array.tobytes() for name, array in a.items()} == {n: array.tobytes() for n, array in b.items()}
    assert found[0].errors == pytest.approx(wanted.errors, rel=1e-5)


def test_the_teacher_computes_the_next_shard_while_the_last_batch_is_encoded(
    made: dict[str, Path], data: Path, teacher: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No encoding ends before the teacher computes the next batch, which a shard's last batch would prevent."""
    config = make_config(data, teacher, detector("retinanet"), tmp_path, "frs", **{"cache.passes": 1})
    plain_encode, run_teacher = encode._encode, Teacher.padded_together
    computed, late, encoded = [Event() for _ in range(100)], list[int](), list[int]()
    calls = iter(range(100))

    def compute(self: Teacher, views: Any) -> TeacherOutput:
        if (tmp_path / "cache/codec.json").exists():
            computed[next(calls)].set()
        return run_teacher(self, views)

    def encode_late(*arguments: Any) -> EncodedViews:
        encoded.append(len(encoded))
        if not computed[len(encoded)].wait(0.5):
            late.append(len(encoded))
        return plain_encode(*arguments)

    monkeypatch.setattr(Teacher, "padded_together", compute)
    monkeypatch.setattr(encode, "_encode", encode_late)

    stage1(config)

    assert len(encoded) > 3 and late == [len(encoded)], "only the last batch has no next one"
    before, after = tree(made["frs"].parent / "cache"), tree(tmp_path / "cache")
    shards = [name for name in after if name.startswith("pass-0/shard-")]
    assert len(shards) > 4 and all(before[name] == after[name] for name in shards)
