"""Share the work of stage 1 among torchrun's ranks. Each rank claims complete shards; rank 0 does the single tasks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from torch import distributed

from pipeline.progress import Log, Progress
from pipeline.storage.base import Lock
from pipeline.storage.lock import joined
from pipeline.storage.place import Place

# The leader's gate and calibration may take hours. torchrun detects a dead rank, so no timeout is needed.
TIMEOUT = timedelta(days=7)


class Ranks:
    """The ranks that torchrun started; a single rank without torchrun."""

    def __init__(self) -> None:
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        self._joined = ExitStack()

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def joined(self) -> bool:
        """Whether the ranks are connected: between `join` and `leave`."""
        return self.world > 1 and distributed.is_initialized()

    def join(self) -> None:
        """Connect to the other ranks. Call it after the gate, because mmdet's metric would wait for all ranks."""
        if self.world > 1:
            distributed.init_process_group("gloo", timeout=TIMEOUT)

    def wait_for_all(self) -> None:
        """Wait until every rank calls this."""
        if self.world > 1:
            distributed.barrier()

    def broadcast(self, value: Any) -> Any:
        """Return the leader's value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def claim(self, name: str, items: list[int]) -> Iterator[int]:
        """Yield items that no other rank has claimed. A fast rank claims more. `name`: unique name of the list."""
        if self.world == 1:
            yield from items
            return
        while (index := self.add_to_count(f"claim/{name}", 1) - 1) < len(items):
            yield items[index]

    def shared_log(self, log: Log) -> Log:
        """Return a log that writes every line of the leader, and only the warnings of other ranks."""

        def log_warning(text: str) -> None:
            if text.startswith("warning"):
                log(f"[rank {self.rank}] {text}")

        return log if self.is_leader else log_warning

    def shared_progress(self, progress: Progress) -> Progress:
        """Return a progress that shows the sum of all ranks on the leader."""
        return progress if self.world == 1 else SharedProgress(self, progress)

    def share_lock(self, root: Place, lock: Lock | None) -> Place:
        """Let all ranks write under the leader's `lock`; a rank may outlive it by one shard. Return the root to use."""
        if self.world == 1:
            return root
        place = self.broadcast(lock.share() if lock else None)
        if lock is None:
            self._joined.enter_context(joined(place))
        return place

    def leave(self) -> None:
        """Disconnect. The leader returns when no other rank writes any more, and may then release the lock."""
        if self.world > 1:
            if not self.is_leader:
                self._joined.close()
            self.wait_for_all()
            distributed.destroy_process_group()

    def add_to_count(self, key: str, amount: int) -> int:
        """Add to a counter that all ranks share. Return the sum."""
        store: Any = distributed.distributed_c10d._get_default_store()
        return int(store.add(key, amount))


class SharedProgress:
    """Adds up the progress of all ranks and shows it on the leader. Before `join`, only the leader works."""

    def __init__(self, ranks: Ranks, shown: Progress) -> None:
        self._ranks, self._shown, self._title = ranks, shown, ""
        self._sums = [0, 0]  # samples and bytes shown so far

    def start(self, title: str, total: int | None) -> None:
        self._title, self._sums = title, [0, 0]
        if self._ranks.is_leader:
            self._shown.start(title, total)

    def advance(self, samples: int, size: int) -> None:
        if not self._ranks.joined:
            if self._ranks.is_leader:
                self._shown.advance(samples, size)
            return
        sums = [self._ranks.add_to_count(f"{self._title}/{n}", amount) for n, amount in enumerate((samples, size))]
        if self._ranks.is_leader:
            self._shown.advance(sums[0] - self._sums[0], sums[1] - self._sums[1])
            self._sums = sums

    def stop(self) -> None:
        if self._ranks.is_leader:
            self.advance(0, 0)  # progress of other ranks after the leader's last shard
            self._shown.stop()
