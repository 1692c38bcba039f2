"""Download a weight file. It appears under its name complete, or not at all."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import uuid
from contextlib import AbstractContextManager, nullcontext
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch

from pipeline.errors import TeacherError

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
        download(url, path)
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{label}: {path} is missing, {without_query(url)} cannot be downloaded ({error}); download it on another "
            "machine and copy it to that path, or set another checkpoint"
        ) from error
    return path


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, and check its size and the hash in its name. Raise OSError or ValueError."""
    print(f"teacher  downloading {without_query(url)} to {path}", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
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
