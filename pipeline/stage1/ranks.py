"""Several processes make one cache: torchrun's ranks take whole shards, rank 0 does what is done once."""

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

# Gate and calibration are made by one rank and may take hours; a rank that dies is noticed by torchrun, not by a clock.
PATIENCE = timedelta(days=7)


class Ranks:
    """This process among those that torchrun started; alone where it did not."""

    def __init__(self) -> None:
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        self._joined = ExitStack()

    def join(self) -> None:
        """Wait until all ranks are here. Not before the leader's gate: mmdet's metric would wait for the others."""
        if self.world > 1:
            distributed.init_process_group("gloo", timeout=PATIENCE)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all ranks are here."""
        if self.world > 1:
            distributed.barrier()

    def told(self, value: Any) -> Any:
        """The leader's value."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def claim(self, name: str, items: list[int]) -> Iterator[int]:
        """Those of the items that no other rank has taken; a fast rank takes more. `name`: of this list, used once."""
        if self.world == 1:
            yield from items
            return
        while (turn := self._count(f"claim/{name}", 1) - 1) < len(items):
            yield items[turn]

    def log(self, log: Log) -> Log:
        """The leader's words, and of the others what must not be missed."""
        if self.leads:
            return log
        return lambda text: log(f"[rank {self.rank}] {text}") if text.startswith("warning") else None

    def progress(self, progress: Progress) -> Progress:
        """The leader's bar shows what all have done."""
        return progress if self.world == 1 else SharedProgress(self, progress)

    def share_lock(self, root: Place, lock: Lock | None) -> Place:
        """All ranks write under the leader's `lock`: one may outlive it by a shard. Returns the root to use."""
        if self.world == 1:
            return root
        place = self.told(lock.share() if lock else None)
        if lock is None:
            self._joined.enter_context(joined(place))
        return place

    def leave(self) -> None:
        """The others write nothing more; only then may the leader let go of the lock."""
        if self.world > 1:
            if not self.leads:
                self._joined.close()
            self.meet()
            distributed.destroy_process_group()

    def _count(self, key: str, amount: int) -> int:
        """Add to a number that all ranks share. Returns the sum."""
        store: Any = distributed.distributed_c10d._get_default_store()
        return int(store.add(key, amount))


class SharedProgress:
    """Adds up what every rank advances."""

    def __init__(self, ranks: Ranks, shown: Progress) -> None:
        self._ranks, self._shown, self._title = ranks, shown, ""
        self._seen = [0, 0]

    def start(self, title: str, total: int | None) -> None:
        self._title, self._seen = title, [0, 0]
        if self._ranks.leads:
            self._shown.start(title, total)

    def advance(self, samples: int, size: int) -> None:
        sums = [self._ranks._count(f"{self._title}/{n}", amount) for n, amount in enumerate((samples, size))]
        if self._ranks.leads:
            self._shown.advance(sums[0] - self._seen[0], sums[1] - self._seen[1])
            self._seen = sums

    def stop(self) -> None:
        if self._ranks.leads:
            self.advance(0, 0)  # what others did behind the leader's last shard
            self._shown.stop()
