"""The lock of a folder in an object store: an object that one process creates and keeps updating.

An object store has no lock that ends with its owner. So the owner writes `.lock` with a conditional put and updates it
every BEAT seconds. Another process takes it over (again by a conditional put, so that only one succeeds) when the
owner ran on this machine and has ended, or when the object has not changed for STALE seconds. No clocks are compared.
Before each write the lock is read: an owner that finds another's token in it writes nothing more, nor do the processes
that work for it.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.errors import CacheError, StoreError
from pipeline.storage.owner import about_this_process, is_running

BEAT, STALE, POLL = 10.0, 45.0, 0.5  # seconds
LARGEST = 1 << 16  # bytes of a lock object


class ConditionalStore(Protocol):
    """What a lease needs of an object store."""

    def describe(self, key: str) -> str: ...

    def put(self, key: str, content: Any, mode: Any) -> str | None: ...

    def read_tagged(self, key: str, limit: int) -> tuple[bytes, str | None]: ...

    def remove(self, key: str) -> None: ...


@dataclass(frozen=True)
class Claim:
    """A lease that this process, or the one that it works for, holds. Can be pickled."""

    key: str
    token: str

    def require(self, store: ConditionalStore) -> None:
        """Raise CacheError where the lock is missing or another process's."""
        found = read_owner(store, self.key)
        if found is None or found[0].get("token") != self.token:
            raise CacheError(
                f"{store.describe(self.key)}: taken over by another process, because the one that held it ended or "
                f"could not reach the store for {STALE:.0f} s; committed data is kept. Rerun the same command when "
                "the other process has ended"
            )


class Lease:
    """One process's claim to the lock object of `folder`."""

    def __init__(self, store: ConditionalStore, folder: str) -> None:
        self._store, self._folder = store, folder
        self.claim = Claim(f"{folder}/.lock" if folder else ".lock", secrets.token_hex(8))
        self._about = {**about_this_process(), "token": self.claim.token}
        self._tag: str | None = None
        self._beats = 0
        self._stop = threading.Event()

    def take(self, wait: bool) -> None:
        """Return once the lock is ours. Raises CacheError where its owner runs, unless `wait`."""
        watched, since, begun = None, 0.0, time.monotonic()
        while not self._put("create"):
            found = self._found()
            if found is None:  # it was released in between
                if not wait and time.monotonic() - begun > STALE:
                    raise CacheError(
                        f"{self._store.describe(self.claim.key)}: inconsistent lock state: create says it exists, read "
                        "says it is missing; contact the store's administrator"
                    )
                time.sleep(POLL)
                continue
            owner, tag = found
            if self._is_ours(owner):  # our own put, whose answer was lost
                self._tag = tag
                return
            alive = is_running(owner)
            if not wait and (alive or watched not in (None, tag)):
                raise CacheError(
                    f"{self._store.describe(self._folder)}: another process is writing this cache (process "
                    f"{owner.get('process')} on {owner.get('host')}, since {owner.get('since')}); wait for it or stop "
                    "it"
                )
            if tag != watched:
                watched, since = tag, time.monotonic()
            if (alive is False or time.monotonic() - since > STALE) and self._put({"e_tag": tag}):
                return
            time.sleep(POLL)

    def keep(self) -> None:
        """Update the object until `release`; runs in a thread of its own."""
        while not self._stop.wait(BEAT):
            with suppress(CacheError):  # a store that cannot be reached now may be at the next beat
                if not self._put({"e_tag": self._tag}):
                    found = self._found()
                    if self._stop.is_set():
                        return
                    if not found or not self._is_ours(found[0]):
                        return
                    self._tag = found[1]  # our own put, whose answer was lost

    def stop(self) -> None:
        self._stop.set()

    def release(self) -> None:
        """Delete the object, if it is still ours."""
        self.stop()
        with suppress(CacheError):
            found = self._found()
            if found and self._is_ours(found[0]):
                self._store.remove(self.claim.key)

    def _is_ours(self, found: dict[str, Any]) -> bool:
        return found.get("token") == self.claim.token

    def _put(self, mode: Any) -> bool:
        self._beats += 1  # an e_tag may be a digest of the bytes: they must differ
        try:
            content = json.dumps({**self._about, "beat": self._beats}).encode()
            self._tag = self._store.put(self.claim.key, content, mode)
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def _found(self) -> tuple[dict[str, Any], str | None] | None:
        return read_owner(self._store, self.claim.key)


def read_owner(store: ConditionalStore, key: str) -> tuple[dict[str, Any], str | None] | None:
    """What a lock object says about its owner, and its e_tag; None where it is missing."""
    try:
        raw, tag = store.read_tagged(key, LARGEST)
        content = json.loads(raw)
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}, tag


@contextmanager
def hold_lease(store: ConditionalStore, folder: str, wait: bool) -> Iterator[Claim]:
    """Hold the lock object of a folder."""
    lease = Lease(store, folder)
    lease.take(wait)
    thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lease.claim
    except StoreError:  # a store that does not answer cannot release it either; the lock goes stale
        lease.stop()
        raise
    except BaseException:
        lease.release()
        raise
    else:
        lease.release()
    finally:
        thread.join(BEAT)
