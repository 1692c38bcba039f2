"""The lock of a folder in an object store: an object that one process creates and keeps updating.

An object store has no lock that is released when its owner ends. The owner therefore creates `.lock` with a conditional
put, and updates it every BEAT seconds. Another process takes the lock over if the owner ran on this machine and has
ended, or if the object has not changed for STALE seconds. It also uses a conditional put, so only one process succeeds.
No clocks are compared. Every process of the owner's run reads the lock before each write. If the lock has another
token, the process stops writing.
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

from pipeline.budget import parse_json
from pipeline.errors import CacheError, StoreError
from pipeline.storage.owner import about_this_process, is_running

BEAT, STALE, POLL = 10.0, 45.0, 0.5  # seconds
LARGEST = 1 << 16  # bytes of a lock object


class ConditionalStore(Protocol):
    """The operations of an object store that a lease needs."""

    def describe(self, key: str) -> str: ...

    def put(self, key: str, content: Any, mode: Any) -> str | None: ...

    def read_tagged(self, key: str, limit: int) -> tuple[bytes, str | None]: ...

    def remove(self, key: str) -> None: ...


@dataclass(frozen=True)
class Claim:
    """The key and token of a lease. Processes of the same run share it; it can be pickled."""

    key: str
    token: str

    def require(self, store: ConditionalStore) -> None:
        """Raise CacheError where the lock is missing or belongs to another process."""
        found = read_owner(store, self.key)
        if found is None or found[0].get("token") != self.token:
            raise CacheError(
                f"{store.describe(self.key)}: another process took the lock over, because its owner ended or could not "
                f"reach the store for {STALE:.0f} s; committed data is kept. Rerun the same command when the other "
                "process has ended"
            )


class Lease:
    """One process's lease on `folder`."""

    def __init__(self, store: ConditionalStore, folder: str) -> None:
        self._store, self._folder = store, folder
        self.claim = Claim(f"{folder}/.lock" if folder else ".lock", secrets.token_hex(8))
        self._about = {**about_this_process(), "token": self.claim.token}
        self._tag: str | None = None
        self._beats = 0
        self._stop = threading.Event()

    def take(self, wait: bool) -> None:
        """Take the lock. If its owner is running, wait if `wait`, otherwise raise CacheError."""
        watched, since, begun = None, 0.0, time.monotonic()
        while not self._put("create"):
            found = self._found()
            if found is None:  # released after the put
                if not wait and time.monotonic() - begun > STALE:
                    raise CacheError(
                        f"{self._store.describe(self.claim.key)}: inconsistent lock state: create says it exists, read "
                        "says it is missing; contact the store's administrator"
                    )
                time.sleep(POLL)
                continue
            owner, tag = found
            if self._is_ours(owner):  # the put succeeded, but its answer was lost
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
        """Update the object until `stop` or `release`. Runs in its own thread."""
        while not self._stop.wait(BEAT):
            with suppress(CacheError):  # retry at the next beat if the store cannot be reached
                if not self._put({"e_tag": self._tag}):
                    found = self._found()
                    if self._stop.is_set():
                        return
                    if not found or not self._is_ours(found[0]):
                        return
                    self._tag = found[1]  # the put succeeded, but its answer was lost

    def stop(self) -> None:
        self._stop.set()

    def release(self) -> None:
        """Delete the object if this process still owns it."""
        self.stop()
        with suppress(CacheError):
            found = self._found()
            if found and self._is_ours(found[0]):
                self._store.remove(self.claim.key)

    def _is_ours(self, found: dict[str, Any]) -> bool:
        return found.get("token") == self.claim.token

    def _put(self, mode: Any) -> bool:
        self._beats += 1  # an e_tag may be a digest of the bytes, so the bytes must change
        try:
            content = json.dumps({**self._about, "beat": self._beats}).encode()
            self._tag = self._store.put(self.claim.key, content, mode)
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def _found(self) -> tuple[dict[str, Any], str | None] | None:
        return read_owner(self._store, self.claim.key)


def read_owner(store: ConditionalStore, key: str) -> tuple[dict[str, Any], str | None] | None:
    """Return the content of a lock object and its e_tag; None if it is missing."""
    try:
        raw, tag = store.read_tagged(key, LARGEST)
        content = parse_json(raw)
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}, tag


@contextmanager
def hold_lease(store: ConditionalStore, folder: str, wait: bool) -> Iterator[Claim]:
    """Lock a folder with a lease, and release it at the end of the block."""
    lease = Lease(store, folder)
    lease.take(wait)
    thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lease.claim
    except StoreError:  # an unreachable store cannot release the lock either; it expires
        lease.stop()
        raise
    except BaseException:
        lease.release()
        raise
    else:
        lease.release()
    finally:
        thread.join(BEAT)
