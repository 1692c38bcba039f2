"""Worker processes that write the shards of the new cache."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from pipeline.cache.shard_plan import ShardPlan
from pipeline.errors import CacheError
from pipeline.storage.place import Place
from pipeline.teacher.model import own_device
from pipeline.tools.reencode.stored import Recoder

Task = tuple[int, int, ShardPlan]  # pass, shard, what it holds


def recode_shards(source: Place, target: Place, tasks: list[Task], jobs: int | None) -> Iterator[tuple[int, int]]:
    """Write shards, in worker processes where there are several and no GPU; yields (views, bytes) of each."""
    device = own_device()
    jobs = min(jobs or (1 if device.type == "cuda" else os.cpu_count() or 1), len(tasks))
    if jobs == 1:
        recoder = Recoder(source, target, device)
        yield from (recoder.recode(*task) for task in tasks)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (source, target, threads)) as pool:
        futures = [pool.submit(_shard, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise CacheError(
                f"{target}: a worker process was killed (out of memory?); what was committed is kept: the same command "
                "goes on from there, perhaps with fewer --jobs"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # and wait: behind us the lock is freed


_RECODER: list[Recoder] = []  # of this worker process


def _begin(source: Place, target: Place, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the workers too; their parent ends them
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    torch.set_num_threads(threads)
    _RECODER.append(Recoder(source, target, torch.device("cpu")))


def _end_with(parent: Any) -> None:
    """An idle worker would wait for a parent that was killed for ever."""
    parent.join()
    os._exit(1)


def _shard(task: Task) -> tuple[int, int]:
    return _RECODER[0].recode(*task)
