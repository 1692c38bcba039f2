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

Task = tuple[int, int, ShardPlan]  # number of the pass, number and plan of the shard


def recode_shards(source: Place, target: Place, tasks: list[Task], jobs: int | None) -> Iterator[tuple[int, int]]:
    """Write shards and yield (views, bytes) of each. Without a GPU, several shards are written by worker processes."""
    device = own_device()
    jobs = min(jobs or (1 if device.type == "cuda" else os.cpu_count() or 1), len(tasks))
    recoder = Recoder(source, target, device if jobs == 1 else torch.device("cpu"))
    if jobs == 1:
        yield from (recoder.recode(*task) for task in tasks)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (threads,)) as pool:
        futures = [pool.submit(recoder.recode, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise CacheError(
                f"{target}: a worker process was killed, perhaps for lack of memory; committed data is kept. Rerun the "
                "same command to resume, with fewer --jobs if memory is short"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # also waits: the caller then releases the lock


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the workers, but the parent ends them
    threading.Thread(target=_exit_after, args=(parent_process(),), daemon=True).start()
    torch.set_num_threads(threads)


def _exit_after(parent: Any) -> None:
    """End this process when its parent ends: a worker would otherwise wait forever for a killed parent."""
    parent.join()
    os._exit(1)
