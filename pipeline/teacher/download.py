"""Download a weight file. It appears under its name complete, or not at all.

Of the processes of a machine that need the same file, one downloads it and the others wait. Model zoos redirect, for
example to a content network. A redirect to https, or within one server, is followed, as a browser does. No request has
credentials.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch

from pipeline.errors import TeacherError
from pipeline.storage.http_connection import origin

# The first 8 digits of the file's sha256, as torch and mmdet put it into names. A date such as -20200131 is no hash.
HASH = re.compile(r"-(?!20[012]\d[01]\d[0-3]\d\.)([0-9a-f]{8})\.\w+$")
FIRST_BYTES = (b"PK", b"\x80")  # a zip file or a pickle; not the page of a login or proxy
TIMEOUT = 60  # seconds without an answer


def is_url(text: str) -> bool:
    """Return whether a value of teacher.checkpoint names something that is not a local file."""
    return "://" in text


def file_name(url: str) -> str:
    """Return the local name of a URL's file. Without a hash in it, the name gets a digest of the URL."""
    name = Path(urlsplit(url).path).name
    if HASH.search(name):
        return name
    path = Path(name)
    return f"{path.stem}.{hashlib.sha256(url.encode()).hexdigest()[:8]}{path.suffix}"


def without_query(url: str) -> str:
    """Return a URL for messages. A query may contain a signature."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def hub_file(name: str) -> Path:
    """Return the path of a downloaded file: torch's hub folder, which mmengine uses as well."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def fetch(url: str, path: Path, label: str) -> Path:
    """Return `path`, downloaded if it is missing. Raise TeacherError that says where to put the file."""
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_process(path):
            if not path.is_file():
                download(url, path)
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{label}: {path} is missing, {without_query(url)} cannot be downloaded ({error}); download it on another "
            "machine and copy it to that path, or set another checkpoint"
        ) from error
    return path


@contextmanager
def one_process(path: Path) -> Iterator[None]:
    """Let one process at a time run the block for `path`, under torchrun or not. The others wait.

    The kernel releases the lock when its process ends. Where a file system has no locks, each process runs the block.
    """
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with lock.open("w") as file:
            _wait_for(file, path)
            if not _is(file, lock):
                continue  # its owner removed it
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _wait_for(file: IO[str], path: Path) -> None:
    """Wait for the lock of a file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"teacher  waiting for another process to download {path}", file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass  # no locks here


def _is(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


class SafeRedirects(HTTPRedirectHandler):
    """Follows redirects to https and within one server. Raises OSError for others."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme != "https" and origin(newurl) != origin(req.full_url):
            raise OSError(f"the server redirects to {origin(newurl)}, which is another server without https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def urlopen(request: Request, timeout: float) -> Any:
    """Open a URL, with the redirects of `SafeRedirects`."""
    return build_opener(SafeRedirects).open(request, timeout=timeout)


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, and check its size and the hash in its name. Raise OSError or ValueError."""
    print(f"teacher  downloading {without_query(url)} to {path}", file=sys.stderr, flush=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with urlopen(Request(url, headers={"User-Agent": "frs-teacher-cache"}), timeout=TIMEOUT) as answer:
            size = answer.headers.get("Content-Length")
            with _progress_bar(answer, size) as reader, part.open("wb") as file:
                shutil.copyfileobj(reader, file, 1 << 20)
        _check(part, size, HASH.search(path.name))
        part.replace(path)
    except HTTPException as error:  # not an OSError: an answer that ends early
        raise OSError(f"{type(error).__name__}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _progress_bar(answer: Any, size: str | None) -> AbstractContextManager[Any]:
    """Wrap an answer, so that a terminal shows how much of it was read."""
    if size is None or not sys.stderr.isatty():
        return nullcontext(answer)
    from rich.console import Console
    from rich.progress import wrap_file

    return wrap_file(answer, int(size), description="teacher ", console=Console(stderr=True))


def _check(part: Path, size: str | None, named: re.Match[str] | None) -> None:
    """Raise OSError where a downloaded file is incomplete or another one."""
    length = part.stat().st_size
    if size is not None and length != int(size):
        raise OSError(f"the connection ended after {length} of {size} bytes")
    with part.open("rb") as file:
        if not file.read(2).startswith(FIRST_BYTES):
            raise OSError("the server's answer is not a checkpoint")
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if named and not found.startswith(named[1]):
        raise OSError(f"its sha256 starts with {found[:8]}, its name says {named[1]}")
