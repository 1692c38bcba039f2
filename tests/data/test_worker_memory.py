"""What loader workers receive: a few bytes an image, and what they hold is shared."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing import context, popen_forkserver
from multiprocessing.reduction import ForkingPickler
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pipeline.cache.shard_plan import ShardPlan, references
from pipeline.data.images import Images
from pipeline.data.mapped import share_arrays
from pipeline.data.sample_table import SampleTable
from pipeline.data.stream import LoaderOptions, Stream, StreamSource, stream_loader
from pipeline.data.views import Views
from pipeline.records import SampleRef
from tests.helpers.datasets import CLASSES
from tests.helpers.forks import send_result
from tests.helpers.servers import web_server
from tests.helpers.stages import prepared_stream

BYTES_AN_IMAGE = 4  # of a pickled stream; COCO has 118,287 images, so below 0.5 MB
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "RandomResize", "scale": [(128, 48), (128, 96)], "keep_ratio": True},
    {"type": "PackDetInputs"},
]


def sent_bytes(value: Any) -> int:
    """Bytes that a process of a fork server receives for a value."""
    starting = popen_forkserver.Popen.__new__(popen_forkserver.Popen)
    starting._fds = []
    context.set_spawning_popen(starting)
    try:
        return len(ForkingPickler.dumps(value))
    finally:
        context.set_spawning_popen(None)


def stream_of(folder: Path, count: int, passes: int = 4) -> Stream:
    """A stream of `count` images with three boxes each, planned and with a scheduled epoch. It has no cache."""
    images = [{"id": 7 * n, "file_name": f"{n:012d}.jpg", "width": 64, "height": 48} for n in range(count)]
    boxes = [
        {"id": 3 * n + k, "image_id": 7 * n, "category_id": 1, "bbox": [k, 2, 8.5, 9], "area": 76.5, "iscrowd": 0}
        for n in range(count)
        for k in range(3)
    ]
    categories = [{"id": 1 + n, "name": name} for n, name in enumerate(CLASSES)]
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    dataset = {"type": "CocoDataset", "ann_file": str(folder / "a.json"), "data_prefix": {"img": str(folder)}}
    found = Images({**dataset, "metainfo": {"classes": CLASSES}, "pipeline": PIPELINE}, folder / "shared")
    views = Views(PIPELINE, 0, passes)
    for image in found.ids[:100]:
        views.pad_shape(found.info(image), 0)
    plans = [[ShardPlan((((64, 64), tuple((i, n) for i in found.ids)),))] for n in range(passes)]
    stream = Stream(
        StreamSource({n: references(plans[n], n) for n in range(passes)}, found, views, None, None, "exact", 0, {}),
        4,
        0,
    )
    assert len(stream) == count // 4
    return stream


def test_bytes_of_an_image(tmp_path: Path) -> None:
    few, many = (sent_bytes(stream_of(tmp_path / str(count), count)) for count in (400, 2400))
    assert (many - few) / 2000 < BYTES_AN_IMAGE
    assert many < 100_000


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_arrays_reach_a_worker(method: str) -> None:
    """A spawned process maps the same file, also after the owner has closed it."""
    arrays = share_arrays({"a": np.arange(5), "empty": np.zeros(0, np.int32), "b": ("|u1", [b"12", b"3"])})
    assert arrays["a"].tolist() == [0, 1, 2, 3, 4] and arrays["b"].tobytes() == b"123" and not len(arrays["empty"])
    with pytest.raises(ValueError, match="read-only"):
        arrays["a"][0] = 1
    ask, answer = multiprocessing.get_context(method).Pipe()
    given = (answer, itemgetter("a"), arrays)
    child = multiprocessing.get_context(method).Process(target=send_result, args=given)
    child.start()
    del arrays, given
    assert ask.recv().tolist() == [0, 1, 2, 3, 4]
    child.join()


def test_a_table_is_its_lists() -> None:
    lists = [[SampleRef(0, n, i, 2**61 - i, n, (32, 64 * i)) for i in range(n)] for n in (3, 0, 2)]
    for shared in (False, True):
        table = SampleTable(lists, shared)
        assert list(table) == lists and [len(table), table[1], table[2]] == [3, [], lists[2]]
        with pytest.raises(IndexError):
            table[3]
    assert list(SampleTable([])) == [] and list(SampleTable([[]], shared=True)) == [[]]


def test_workers_of_a_remote_cache_stay(made: dict[str, Path]) -> None:
    """Each would be started and sent the stream again in every epoch."""
    with web_server(made["frs"].parent) as server:
        stream = prepared_stream(made["frs"], **{"cache.dir": f"{server.address}/cache"})
        loader: DataLoader = stream_loader(stream, LoaderOptions(1))
        assert loader.persistent_workers and sent_bytes(stream) < 1_000_000
    assert not stream_loader(prepared_stream(made["frs"]), LoaderOptions(1)).persistent_workers
