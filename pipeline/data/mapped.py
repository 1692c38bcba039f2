"""Arrays in one file that processes share: ranks and workers map the file, and no process copies it.

A worker that is started by fork inherits the mapping. A worker of a fork server or of spawn gets the open file, so the
arrays cost no bytes when their owner is pickled for it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping
from multiprocessing import reduction
from typing import Any, BinaryIO

import numpy as np

ALIGNED = 64  # each array starts at a multiple of this many bytes
Table = dict[str, tuple[str, int, int]]  # dtype, number of elements and offset of each array


class MappedArrays:
    """One-dimensional arrays of a file, by name. Read-only. `table`: the result of `write_arrays`."""

    def __init__(self, descriptor: int, table: Table) -> None:
        """Map an open file. The descriptor is duplicated, and the file may be unlinked."""
        self._descriptor, self._table = os.dup(descriptor), table
        self._map()

    def _map(self) -> None:
        mapped = mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)
        self._arrays = {
            name: np.frombuffer(mapped, dtype, count, offset) for name, (dtype, count, offset) in self._table.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process. It can be pickled only while that process is started."""
        return {"file": reduction.DupFd(self._descriptor), "table": self._table}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._descriptor, self._table = state["file"].detach(), state["table"]
        self._map()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray | tuple[str, Iterable[bytes]]]) -> Table:
    """Write arrays one after another. Instead of an array, (dtype, its bytes in parts) may be given."""
    table: Table = {}
    for name, value in arrays.items():
        file.write(b"\0" * (-file.tell() % ALIGNED))
        start = file.tell()
        dtype, parts = value if isinstance(value, tuple) else (value.dtype.str, [np.ascontiguousarray(value).tobytes()])
        for part in parts:
            file.write(part)
        table[name] = (dtype, (file.tell() - start) // np.dtype(dtype).itemsize, start)
    file.write(b"\0" * ALIGNED)  # an empty file cannot be mapped
    file.flush()
    return table


def share_arrays(arrays: Mapping[str, np.ndarray | tuple[str, Iterable[bytes]]]) -> MappedArrays:
    """Put arrays into an unnamed temporary file."""
    with tempfile.TemporaryFile() as file:
        table = write_arrays(file, arrays)
        return MappedArrays(file.fileno(), table)
