"""Check what a checkpoint costs before it is loaded.

torch.save stores tensors without compression, so a file's size limits their memory. A zip file that was made in another
way can decompress to a thousand times its size, and has no use: weights compress by a few percent. The pickle in a file
makes Python objects of one byte each, so its operations are counted.
"""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.budget import BUDGET, excess

ZIP = b"PK\x03\x04"
SMALL = 64 << 20  # bytes that any file may decompress to
LEGACY = 5  # pickles at the start of a file that is no zip: magic number, version, system, content, keys of tensors
SIZED = ("bytearray",)  # a number in the pickle decides its size


def find_cost(path: Path) -> str | None:
    """Return what is wrong with a checkpoint that would cost more than its size justifies; None if nothing is.

    A damaged file is left to torch, which reads no further than the damage. Raise OSError.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(ZIP)) == ZIP:
                return _check_zip(path)
            file.seek(0)
            return _count(file, LEGACY)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error):
        return None


def _check_zip(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        size, total = path.stat().st_size, sum(info.file_size for info in archive.infolist())
        if total > max(SMALL, 2 * size):
            return (
                f"its tensors have {total >> 20} MiB in a file of {size / 2**20:.1f} MiB; expected a file of "
                "torch.save, which does not compress"
            )
        for info in archive.infolist():
            if info.filename.endswith(".pkl"):
                with archive.open(info) as file:
                    wrong = _count(file, 1)
                if wrong is not None:
                    return wrong
    return None


def _count(file: IO[bytes], pickles: int) -> str | None:
    """Count the operations of the pickles at the start of a file, up to the budget."""
    for steps, (name, argument) in enumerate(_operations(file, pickles), start=1):
        if name in ("GLOBAL", "STACK_GLOBAL") and str(argument).endswith(SIZED):
            return f"contains a {argument}, which can declare any size; expected tensors, numbers and text"
        if steps > BUDGET.pickle_steps:
            return excess("steps of its pickle", steps, BUDGET.pickle_steps)
    return None


def _operations(file: IO[bytes], pickles: int) -> Iterator[tuple[str, object]]:
    for _ in range(pickles):
        for code, argument, _ in pickletools.genops(file):
            yield code.name, argument
