"""The digests of the original files that a repair replaces, kept in repair.json until the repair has ended.

A manifest is deleted before its pass is computed again. Without this file, a repair that was killed then and run again
could not say whether its result is the original.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pipeline.cache.canonical import write_json
from pipeline.cache.schema import read_fields
from pipeline.errors import CacheError, StoreError
from pipeline.integrity.damage import sha256_or_none
from pipeline.storage.files import discard

NAME = "repair.json"
FILE = re.compile(r"(?!.*\.\.)((plan|codec|gate|summary|repair)\.json|(codec|codec-copy|images|pass-\d+)/[\w./-]+)")
FIELDS = {"plan": str, "files": {FILE: str}, "replaced": [FILE]}


class Originals:
    """The originals of a cache's files, by name in the cache.

    `plan`: digest of the cache's plan.json; the repair.json of another cache is ignored. `covered`: whether the content
    digest covers a file, by its name in the cache. `earlier`: the files that an
    interrupted repair replaced. Nothing is written before `save`.
    """

    def __init__(self, root: Path, plan: str, covered: Callable[[str], bool]) -> None:
        self._root, self._plan, self._covered = root, plan, covered
        self._files: dict[str, str] = {}
        self._replaced: dict[str, None] = {}  # in the order in which they were found
        self._saved: tuple[int, int] = (0, 0)
        self._load()
        self.earlier = frozenset(self._replaced)

    def _load(self) -> None:
        if not (self._root / NAME).exists():
            return
        try:
            found = read_fields(self._root / NAME, FIELDS)
        except StoreError:
            raise
        except CacheError:
            self._replaced[NAME] = None  # the digests in it are lost
            return
        if found["plan"] == self._plan:
            self._files, self._replaced = dict(found["files"]), dict.fromkeys(found["replaced"])

    def name(self, path: Path) -> str:
        """Return the name of a file in the cache."""
        return path.relative_to(self._root).as_posix()

    def sha256(self, path: Path) -> str | None:
        """Return the sha256 of the original of a file; None if it is unknown."""
        return self._files.get(self.name(path))

    def know(self, path: Path, sha256: str | None) -> None:
        """Keep the sha256 of an original, if it is known. That of an interrupted repair is not changed."""
        if sha256 is not None and self.name(path) not in self.earlier:
            self._files.setdefault(self.name(path), sha256)

    def replace(self, path: Path, sha256: str | None = None) -> None:
        """Note that a file is about to be replaced. `sha256`: that of its original, if it is known."""
        self.know(path, sha256)
        self._replaced[self.name(path)] = None

    def save(self) -> None:
        """Write repair.json. Call it before a file is replaced or deleted."""
        size = (len(self._files), len(self._replaced))
        if self._replaced and size != self._saved:
            content = {"plan": self._plan, "files": self._files, "replaced": [*self._replaced]}
            write_json(self._root / NAME, content)
            self._saved = size

    def compare(self) -> str:
        """Compare the replaced files with their originals. Return the result in one line."""
        changed = [n for n in self._replaced if n in self._files and self._differs(n)]
        unknown = [n for n in self._replaced if n not in self._files]
        parts = []
        if changed:
            parts.append(
                f"{_count(changed)} differ from the original (first: {changed[0]}); the machine, the thread count or a "
                "library probably differs"
            )
            if any(self._covered(name) for name in changed):
                parts.append("the cache has a new content digest")
        if unknown:
            parts.append(
                f"the original digest of {_count(unknown)} is unknown (first: {unknown[0]}), so whether they equal the "
                "original is unknown"
            )
        return "; ".join(parts) or "byte for byte equal to the original"

    def _differs(self, name: str) -> bool:
        return sha256_or_none(self._root / name) != self._files[name]

    def __bool__(self) -> bool:
        return bool(self._replaced)

    def discard(self) -> None:
        """Delete repair.json, at the end of the repair."""
        discard(self._root / NAME)


def _count(names: list[str]) -> str:
    return f"{len(names)} file{'s' * (len(names) != 1)}"
