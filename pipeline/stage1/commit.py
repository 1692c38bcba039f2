"""Commit shards on a background thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Generic, TypeVar

from pipeline.cache.sidecar import Sidecar

Shard = TypeVar("Shard")


class BackgroundCommitter(Generic[Shard]):
    """Commits a shard on a thread while the teacher computes the next one. At most one commit is running.

    report(shard, sidecar) is called on the caller's thread, once for each committed shard, in order.
    """

    def __init__(self, report: Callable[[Shard, Sidecar], None]) -> None:
        self._report = report
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: tuple[Shard, Future[Sidecar | None]] | None = None
        self._writing, self._closed = Lock(), False

    def __enter__(self) -> BackgroundCommitter[Shard]:
        return self

    def submit(self, shard: Shard, commit: Callable[[], Sidecar]) -> None:
        """Wait for the previous commit, then start to commit a shard. Raise the error of the previous commit."""
        self.finish()
        self._pending = shard, self._pool.submit(self._commit, commit)

    def _commit(self, commit: Callable[[], Sidecar]) -> Sidecar | None:
        with self._writing:
            return None if self._closed else commit()

    def finish(self) -> None:
        """Wait for the running commit and report its shard.

        Call it inside the `with` block, so that a signal during the wait is raised before `__exit__`, not in it.
        """
        if self._pending is None:
            return
        shard, future = self._pending
        sidecar = future.result()
        self._pending = None
        if sidecar is not None:
            self._report(shard, sidecar)

    def __exit__(self, *_: Any) -> None:
        """Wait until the running commit is complete, because the caller then releases the cache's lock.

        The thread is not joined. Python regards a thread as ended when a signal interrupts its join, although it
        still writes.
        """
        interrupt: KeyboardInterrupt | None = None
        while not self._closed:
            try:
                with self._writing:
                    self._closed = True
            except KeyboardInterrupt as signal:
                interrupt = signal
        self._pool.shutdown(wait=False)
        if interrupt:
            raise interrupt
