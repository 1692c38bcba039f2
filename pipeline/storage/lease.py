"""The lock of a cache in an object store: an object that one process created and keeps touching.

An object store has no lock that dies with its owner. So the owner writes `.lock` with a conditional put and touches it
every BEAT seconds. Another process takes it over (again by a conditional put, so that one alone succeeds) when the
owner is known to be dead, having run on this machine, or when the object has not changed while it was watched for
STALE seconds. No clocks are compared. Before a file is put the lock is looked at: an owner that finds it taken writes
nothing more, nor do the processes that work for it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import CacheError, StoreError
from pipeline.storage.object_store import RemotePath

BEAT, STALE, POLL = 10.0, 45.0, 0.5  # seconds
LARGEST = 1 << 16  # bytes of a lock object
Claims = dict[RemotePath, str]  # lock objects, and the token that is in them as long as they are ours
_claims: Claims = {}  # of this process, or of the one that it works for


class Lease:
    """One process's claim to `path`, an object."""

    def __init__(self, path: RemotePath) -> None:
        self.path, self._beats = path, 0
        self._about: dict[str, Any] = {
            "token": secrets.token_hex(8), "host": socket.gethostname(), "process": os.getpid(), "kernel": kernel(),
            "started": started(os.getpid()), "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
        self._tag: str | None = None
        self._stop = threading.Event()

    def take(self, wait: bool) -> None:
        """Return once the lock is ours. Raises CacheError where its owner lives, unless told to wait."""
        watched, since, begun = None, 0.0, time.monotonic()
        while not self._put("create"):
            found = self._found()
            if found is None:  # it was released in between
                if not wait and time.monotonic() - begun > STALE:
                    raise CacheError(
                        f"{self.path}: the store says that it is there, and that it is not; ask its keeper"
                    )
                time.sleep(POLL)
                continue
            owner, tag = found
            if self._mine(owner):  # our own put, whose answer was lost
                self._tag = tag
                return
            alive = running(owner)
            if not wait and (alive or watched not in (None, tag)):
                raise CacheError(
                    f"{self.path.parent}: another process is writing this cache (process {owner.get('process')} on "
                    f"{owner.get('host')}, since {owner.get('since')}); wait for it or stop it"
                )
            if tag != watched:
                watched, since = tag, time.monotonic()
            if (alive is False or time.monotonic() - since > STALE) and self._put({"e_tag": tag}):
                return
            time.sleep(POLL)

    def keep(self) -> None:
        """Touch the object until `release`; runs in a thread of its own."""
        while not self._stop.wait(BEAT):
            with suppress(CacheError):  # a store that cannot be reached now may be at the next beat
                if not self._put({"e_tag": self._tag}):
                    found = self._found()
                    if self._stop.is_set():
                        return
                    if not found or not self._mine(found[0]):
                        return
                    self._tag = found[1]  # our own put, whose answer was lost

    def stop(self) -> None:
        self._stop.set()

    def release(self) -> None:
        """Delete the object, if it is still ours."""
        self.stop()
        with suppress(CacheError):
            found = self._found()
            if found and self._mine(found[0]):
                self.path.unlink(missing_ok=True)

    @property
    def token(self) -> str:
        return self._about["token"]

    def _mine(self, found: dict[str, Any]) -> bool:
        return found.get("token") == self.token

    def _put(self, mode: Any) -> bool:
        self._beats += 1  # an e_tag may be a digest of the bytes: they must differ
        try:
            self._tag = self.path.put(json.dumps({**self._about, "beat": self._beats}).encode(), mode)
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def _found(self) -> tuple[dict[str, Any], str | None] | None:
        return found_in(self.path)


def found_in(path: RemotePath) -> tuple[dict[str, Any], str | None] | None:
    """What a lock object says of its owner, and its e_tag; None where there is none."""
    try:
        raw, tag = path.read_tagged(LARGEST)
        content = json.loads(raw)
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}, tag


def kernel() -> str:
    """Names the running kernel and the space its process numbers count in; empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(process: int) -> str | None:
    """When a process of this kernel started, in its own ticks; None where it does not run."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def running(owner: dict[str, Any]) -> bool | None:
    """Whether the owner still runs; None where it cannot be known, because it ran elsewhere."""
    process, here = owner.get("process"), kernel()
    if not here or owner.get("kernel") != here or not isinstance(process, int):
        return None
    return started(process) == owner.get("started")


@contextmanager
def leased(path: RemotePath, wait: bool) -> Iterator[None]:
    """Hold the lock object `path`."""
    lease = Lease(path)
    lease.take(wait)
    _claims[path] = lease.token
    thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    except StoreError:  # what does not answer cannot be released either; left behind, the lock goes stale
        lease.stop()
        raise
    except BaseException:
        lease.release()
        raise
    else:
        lease.release()
    finally:
        thread.join(BEAT)
        del _claims[path]


def claims() -> Claims:
    """The locks that this process holds, for the processes that work for it."""
    return dict(_claims)


def work_under(claims: Claims) -> None:
    """From now on write nothing unless these locks are still those of the process that we work for."""
    _claims.update(claims)


def leave() -> None:
    """The work under these locks is done."""
    _claims.clear()


def require_held() -> None:
    """Raise CacheError where a lock that we work under is another's, or gone."""
    for path, token in claims().items():
        found = found_in(path)
        if found is None or found[0].get("token") != token:
            raise CacheError(
                f"{path}: taken over by another process, as the one that held it ended or could not reach the store "
                f"for {STALE:.0f} s; what was committed is kept: start again when the other has ended"
            )
