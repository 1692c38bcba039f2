"""The keys of train_dataloader: honoured, replaced by the stream, or refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from pipeline.config import load_config
from pipeline.data.stream import LoaderOptions, Stream, stream_loader
from pipeline.errors import ConfigError, StudentError
from pipeline.records import EncodedBatch
from pipeline.stage2.loader import loader_errors, read_batch_size, read_loader
from pipeline.stage2.settings import check_training
from pipeline.stage2.teacher_data import prepare_teacher_data
from tests.helpers.servers import web_server
from tests.helpers.stages import stage2

STOCK = {
    "dataset": {"type": "CocoDataset"},
    "batch_size": 2,
    "num_workers": 2,
    "persistent_workers": True,
    "pin_memory": True,
    "prefetch_factor": 4,
    "timeout": 60,
    "drop_last": False,
    "worker_init_fn": None,
    "sampler": {"type": "DefaultSampler", "shuffle": True, "_scope_": "mmdet"},  # as after _base_ = "mmdet::..."
    "batch_sampler": {"type": "mmdet.AspectRatioBatchSampler", "drop_last": False},
}


def stream_of(config: Path, **options: Any) -> Stream:
    cfg, sections = load_config(str(config), options)
    return Stream(prepare_teacher_data(cfg, sections).stream, 4, seed=1)


def test_all_options_reach_torch(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    options = read_loader(STOCK)
    assert options == LoaderOptions(2, True, True, 4, 60)
    stream = stream_of(made["frs"])
    loader = stream_loader(stream, options)
    found = (loader.num_workers, loader.persistent_workers, loader.prefetch_factor, loader.timeout, loader.batch_size)
    assert found == (2, True, 4, 60, None) and loader.pin_memory == torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert stream_loader(stream, options).pin_memory is True
    assert read_loader({}) == LoaderOptions() == LoaderOptions(0, False, False, None, 0.0)


REFUSED = {
    "collate_fn": {"type": "pseudo_collate"},
    "drop_last": True,
    "num_batch_per_epoch": 10,
    "worker_init_fn": {"type": "worker_init_fn"},
    "multiprocessing_context": "spawn",
    "generator": 3,
    "shuffle": False,
    "pin_memory_device": "cuda",
    "in_order": False,
    "num_wrokers": 2,
    "sampler": {"type": "DefaultSampler", "shuffle": False},
    "batch_sampler": {"type": "AspectRatioBatchSampler", "drop_last": True},
}


@pytest.mark.parametrize("key", REFUSED)
def test_keys_without_effect_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^train_dataloader\.{key}.*: has no effect in stage 2"):
        read_loader({**STOCK, key: REFUSED[key]})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_workers", -1, "expected at least 0, found -1"),
        ("num_workers", "2", "expected int, found '2'"),
        ("prefetch_factor", 0, "expected at least 1, found 0"),
        ("persistent_workers", 1, "expected bool, found 1"),
        ("pin_memory", "yes", "expected bool, found 'yes'"),
        ("timeout", -2.0, "expected at least 0"),
        ("sampler", {"type": "ClassAwareSampler"}, "ClassAwareSampler cannot choose the samples"),
        ("sampler", "DefaultSampler", "expected a dict, found 'DefaultSampler'"),
    ],
)
def test_values(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^train_dataloader\.{key}: {words}"):
        read_loader({**STOCK, key: value})


@pytest.mark.parametrize("key", ["persistent_workers", "prefetch_factor", "timeout"])
def test_settings_of_workers_need_workers(made: dict[str, Path], key: str) -> None:
    """The error comes before the cache is opened."""
    value = STOCK[key]
    cfg, _ = load_config(str(made["frs"]), {f"train_dataloader.{key}": value})
    with pytest.raises(ConfigError, match=rf"train_dataloader\.{key}={value}.*: needs num_workers above 0, found 0"):
        check_training(cfg)
    cfg.train_dataloader[key] = {"timeout": 0, "persistent_workers": False}.get(key)
    check_training(cfg)


@pytest.mark.parametrize("size", [None, 0, "4", True, 2.0])
def test_batch_size(size: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size: expected an integer of at least 1"):
        read_batch_size({"batch_size": size})


def content_of(batch: dict[str, Any]) -> list[Any]:
    arrays = batch["teacher"].arrays.items()
    return [s.img_id for s in batch["data_samples"]] + [
        (name, hashlib.sha256(array.numpy().tobytes()).hexdigest()) for name, array in arrays
    ]


def three_epochs(stream: Stream, options: LoaderOptions) -> list[list[Any]]:
    """Two epochs, and a third one that was resumed after a batch."""
    loader: DataLoader = stream_loader(stream, options)
    epochs = []
    for epoch, start in ((0, 0), (1, 0), (2, 1)):
        stream.set_epoch(epoch)
        stream.set_start(start)
        epochs.append([content_of(batch) for batch in loader])
    return epochs


def test_persistent_workers_see_each_epoch(made: dict[str, Path]) -> None:
    stream = stream_of(made["frs"])
    wanted = three_epochs(stream, LoaderOptions())
    assert [len(epoch) for epoch in wanted] == [3, 3, 2] and wanted[0] != wanted[1]
    for options in (
        LoaderOptions(2, True),
        LoaderOptions(2, True, True, 1, 60),
        LoaderOptions(1, False, prefetch_factor=3),
    ):
        assert three_epochs(stream, options) == wanted, options


@pytest.mark.slow
def test_persistent_workers_of_a_remote_cache(made: dict[str, Path]) -> None:
    """They are started by a fork server, and get the position in shared memory."""
    wanted = three_epochs(stream_of(made["frs"]), LoaderOptions())
    with web_server(made["frs"].parent) as server:
        stream = stream_of(made["frs"], **{"cache.dir": f"{server.address}/cache"})
        assert three_epochs(stream, LoaderOptions(2, True)) == wanted


@pytest.mark.slow
def test_workers_do_not_change_the_student(made: dict[str, Path], tmp_path: Path) -> None:
    weights, always = [], {"train_cfg.max_epochs": 2, "train_cfg.val_interval": 9}
    for number, options in enumerate(({}, {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 1})):
        work, changes = tmp_path / str(number), {f"train_dataloader.{key}": value for key, value in options.items()}
        stage2(made["frs"], **{**always, **changes, "work_dir": str(work)})
        weights.append(torch.load(work / "epoch_2.pth", weights_only=True)["state_dict"])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_batches_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch pins tensors, and calls `pin_memory` of other types."""
    batch = EncodedBatch({"features": torch.arange(3)}, (((1, 2),),), torch.tensor([[[1, 2]]]))
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor + 1

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert batch.pin_memory() is batch and not pinned
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    image = torch.zeros(2)
    found = pin_memory({"inputs": [image], "teacher": batch, "data_samples": ["a"]})
    assert [id(tensor) for tensor in pinned] == [id(image), id(batch.arrays["features"]), id(batch.sides)]
    assert isinstance(found["teacher"], EncodedBatch) and found["teacher"].levels == batch.levels
    assert found["teacher"].arrays["features"].tolist() == [1, 2, 3] and found["data_samples"] == ["a"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "DataLoader timed out after 5 seconds",
            r"train_dataloader\.timeout: DataLoader timed out after 5 seconds; incr",
        ),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "reduce num_workers. Rerun with --resume"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "reduce num_workers. Rerun with --resume"),
    ],
)
def test_errors_of_workers_are_one_line(text: str, words: str) -> None:
    with pytest.raises(StudentError, match=words), loader_errors():
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shapes"), loader_errors():
        raise RuntimeError("shapes differ")
