"""mmdet's data_info of every image of a data set, in one file that ranks, workers and later starts share.

The file is found by the sha256 of the annotation file and by all else that decides its content, and is checked before
it is used. It holds JSON, so that a file of others can be read. A data set whose rows JSON cannot express, or whose
class is not mmdet's, gets an unnamed file of this process with pickled rows.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.canonical import digest, read_json, write_json
from pipeline.data.mapped import MappedArrays, share_arrays, write_arrays
from pipeline.errors import CacheError, CorruptCache
from pipeline.storage.local import sha256_file
from pipeline.storage.regular import create, open_regular, remove, remove_temporary, temporary_name

NAME = re.compile(r"[0-9a-f]{16}\.json")
KEPT = 4  # files of a folder; older ones are deleted
DTYPES = {"text": "|u1", "ends": "<i8", "ids": "<i8", "order": "<i8", "heights": "<i8", "widths": "<i8"}
encode_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


@dataclass(frozen=True)
class Parsed:
    """What an annotation file was parsed to: mmdet's data_info of the images in their order, and notes for the log.

    `total`: images in the file, also those that filter_cfg leaves out.
    """

    rows: list[dict[str, Any]]
    total: int
    notes: list[str]


class ImageRows:
    """The data_info of images by id, and their sizes as arrays. Can be pickled only for a worker process."""

    def __init__(self, arrays: MappedArrays, total: int, notes: list[str], plain: bool) -> None:
        """`plain`: rows are JSON; otherwise this process pickled them."""
        self._arrays, self.total, self.notes, self._plain = arrays, total, notes, plain

    def __len__(self) -> int:
        return len(self._arrays["ids"])

    @property
    def ids(self) -> list[int]:
        return self._arrays["ids"].tolist()

    def find(self, image_id: int) -> int | None:
        """Return the position of an image; None if there is no such image."""
        ids, order = self._arrays["ids"], self._arrays["order"]
        at = int(np.searchsorted(ids, image_id, sorter=order))
        if at == len(order) or ids[order[at]] != image_id:
            return None
        return int(order[at])

    def size(self, position: int) -> tuple[int, int]:
        """Return the (height, width) of an image."""
        return int(self._arrays["heights"][position]), int(self._arrays["widths"][position])

    def row(self, position: int) -> dict[str, Any]:
        """Return a new copy of an image's data_info, as mmdet's get_data_info does."""
        ends = self._arrays["ends"]
        text = self._arrays["text"][int(ends[position - 1]) if position else 0 : int(ends[position])].tobytes()
        row = json.loads(text) if self._plain else pickle.loads(text)
        return {**row, "sample_idx": position}


def share_rows(parsed: Parsed) -> ImageRows:
    """Put rows into an unnamed file that only this process and its workers see."""
    arrays = share_arrays(columns(parsed.rows, lambda row: pickle.dumps(row, protocol=5)))
    return ImageRows(arrays, parsed.total, parsed.notes, plain=False)


def load_or_parse(folder: Path, key: dict[str, Any], parse: Callable[[], Parsed]) -> ImageRows:
    """Open the file of a key, or parse and write it. Other processes of this machine wait meanwhile.

    `key`: everything that decides the rows. Where the folder cannot be written, use an unnamed file.
    """
    path = folder / f"{digest(key)[:16]}.json"
    with locked(folder) as alone:
        found = open_rows(path, key)
        if found is not None:
            return found
        parsed = parse()
        if not alone:
            return share_rows(parsed)
        try:
            remove_temporary(folder)
            write_rows(path, key, parsed)
            remove_old(folder)
        except (OSError, CorruptCache):
            return share_rows(parsed)
        return open_rows(path, key, written=True) or share_rows(parsed)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Wait for the folder's lock. Give whether this process has it: it has not in a folder that cannot be written."""
    handle, alone = None, False
    with suppress(OSError, CorruptCache):
        folder.mkdir(parents=True, exist_ok=True)
        handle = open_regular(folder / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_EX)
        alone = True
    try:
        yield alone
    finally:
        if handle is not None:
            os.close(handle)


def open_rows(path: Path, key: dict[str, Any], written: bool = False) -> ImageRows | None:
    """Open and check the rows of a key; None where they are missing, damaged or those of another key.

    `written`: this process has just written them, so their sha256 is not compared.
    """
    try:
        head = read_json(path)
        data = path.with_suffix(".rows")
        handle = open_regular(data)
        try:
            table = {name: (dtype, *head["table"][name]) for name, dtype in DTYPES.items()}
            if head["key"] != key or not (written or sha256_file(data) == head["sha256"]):
                return None
            return ImageRows(MappedArrays(handle, table), head["total"], head["notes"], plain=True)
        finally:
            os.close(handle)
    except (CacheError, OSError, KeyError, TypeError, ValueError):
        return None


def write_rows(path: Path, key: dict[str, Any], parsed: Parsed) -> None:
    """Write the rows of a key, and then the head that refers to them. Raise OSError."""
    data = path.with_suffix(".rows")
    temporary = temporary_name(data)
    try:
        with open(create(temporary), "wb") as file:
            table = write_arrays(file, columns(parsed.rows, lambda row: encode_json(row).encode()))
        about = {"key": key, "total": parsed.total, "notes": parsed.notes, "sha256": sha256_file(temporary)}
        remove(path)  # a crash here leaves no head for the new rows
        os.replace(temporary, data)
        write_json(path, {**about, "table": {name: list(where[1:]) for name, where in table.items()}})
    except BaseException:
        remove(temporary)
        raise


def columns(rows: list[dict[str, Any]], encode: Callable[[dict[str, Any]], bytes]) -> dict[str, Any]:
    """Return the arrays of DTYPES. The rows are encoded one by one while they are written."""
    sizes: list[int] = []

    def texts() -> Iterator[bytes]:
        for row in rows:
            text = encode(row)
            sizes.append(len(text))
            yield text

    def ends() -> Iterator[bytes]:  # known after the texts were written
        yield np.cumsum(sizes, dtype=np.int64).tobytes()

    ids = np.array([int(row["img_id"]) for row in rows], np.int64)
    sides = {key: np.array([int(row[key[:-1]]) for row in rows], np.int64) for key in ("heights", "widths")}
    order = np.argsort(ids, kind="stable").astype(np.int64)
    return {"text": ("|u1", texts()), "ends": ("<i8", ends()), "ids": ids, "order": order, **sides}


def remove_old(folder: Path) -> None:
    """Delete all but the newest files. Processes that have mapped one keep it."""
    heads = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
    for path in sorted(heads, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        remove(path)
        remove(path.with_suffix(".rows"))
