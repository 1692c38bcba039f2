"""Committing shards behind the teacher's back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from pipeline.cache.shard_plan import ShardPlan


class Behind:
    """A thread that commits one shard while the teacher computes the next; never more than one waits."""

    def __init__(self, done: Callable[[int, ShardPlan, int], None]) -> None:
        self._done = done
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._last: Callable[[], None] = lambda: None
        self._writing, self._closed = Lock(), False

    def __enter__(self) -> Behind:
        return self

    def commit(self, n: int, shard: ShardPlan, commit: Callable[[], int]) -> None:
        self._last()  # its error, if it had one, stops us here
        future = self._pool.submit(self._commit, commit)
        self._last = lambda: self._done(n, shard, future.result())

    def _commit(self, commit: Callable[[], int]) -> int:
        with self._writing:
            return 0 if self._closed else commit()

    def finish(self) -> None:
        """Wait for the last shard; inside the `with`, so that a signal meanwhile comes before `__exit__`, not in it."""
        self._last()
        self._last = lambda: None

    def __exit__(self, *_: Any) -> None:
        """The shard that is being written is finished in any case: whoever leaves here frees the cache's lock.

        No thread is joined: one whose join a signal interrupts counts as ended to Python, and it still writes.
        """
        stopped: KeyboardInterrupt | None = None
        while not self._closed:
            try:
                with self._writing:
                    self._closed = True
            except KeyboardInterrupt as signal:
                stopped = signal
        self._pool.shutdown(wait=False)
        if stopped:
            raise stopped
