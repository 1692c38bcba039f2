"""Find the damaged files of one pass, and delete those that stage 1 must make again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pipeline.budget import BUDGET
from pipeline.cache.quarantine import FILE, Quarantine
from pipeline.cache.schema import MANIFEST, PASS_PLAN, read_fields
from pipeline.cache.sidecar import Sidecar
from pipeline.errors import CorruptCache
from pipeline.integrity.damage import read_or_none, sha256_or_none
from pipeline.integrity.originals import Originals
from pipeline.storage.files import discard


class PassRepair:
    """The repair of one pass. `find` changes nothing, so that `Originals` can be saved before `clear`.

    `sidecars`: of all shards of the cache by path, None for a damaged one. `bad`: a line for each damaged file.
    """

    def __init__(self, folder: Path, sidecars: Mapping[Path, Sidecar | None], originals: Originals) -> None:
        self._folder, self._originals, self.bad = folder, originals, list[str]()
        self._sidecars = {path: sidecar for path, sidecar in sidecars.items() if path.parent == folder}
        self._plan, self._manifest_file = folder / "plan.json", folder / "manifest.json"
        self._manifest = read_or_none(partial(read_fields, self._manifest_file, MANIFEST))
        files = self._manifest["files"] if self._manifest else {}
        self._listed = {folder / name: entry["sha256"] for name, entry in files.items()}
        self._sizes = {folder / name: int(entry["bytes"]) for name, entry in files.items()}
        self._sizes |= {path.with_suffix(".tar"): s.size for path, s in self._sidecars.items() if s is not None}
        self._quarantine: Quarantine | None = None
        self._cleared: list[Path] = []
        self._digests: dict[Path, str | None] = {}

    def find(self) -> None:
        """Find the damaged files, and keep the digests of the originals."""
        self._find_quarantine()
        if self._differs(self._plan) or read_or_none(partial(read_fields, self._plan, PASS_PLAN)) is None:
            self._add(f"{self._plan}: recomputed", self._plan)
        shards = {path.with_suffix(".tar") for path in self._sidecars}
        for path in sorted(shards | {path for path in self._listed if path.suffix == ".tar"}):
            self._find_shard(path)
        if self._manifest is None:
            self.bad.append(f"{self._manifest_file}: rewritten from the sidecars")
        if self.bad:  # the manifest is written again too
            for path, sha256 in self._listed.items():
                self._originals.know(path, sha256)
            self._originals.replace(self._manifest_file, self._sha256(self._manifest_file) if self._manifest else None)
            self._cleared.append(self._manifest_file)

    def clear(self) -> None:
        """Rewrite the quarantine from the manifest, then delete the files that stage 1 must make again."""
        if self._quarantine is not None and self._quarantine.images:
            self._quarantine.save(self._folder)
        elif self._quarantine is not None:
            discard(self._folder / FILE)
        for path in self._cleared:
            discard(path)

    def _add(self, line: str, path: Path, original: str | None = None) -> None:
        """Add a damaged file. `original`: its sha256, if the manifest does not have it."""
        self.bad.append(line)
        self._replace(path, original)

    def _replace(self, path: Path, original: str | None) -> None:
        self._originals.replace(path, self._listed.get(path) or original)
        if path.suffix == ".json":  # a tar without its sidecar is overwritten
            self._cleared.append(path)

    def _find_quarantine(self) -> None:
        path = self._folder / FILE
        found = read_or_none(partial(Quarantine.load, self._folder))
        if self._manifest is None:
            if found is None:
                raise CorruptCache(
                    f"{path}: damaged, and the manifest, which has a copy, is damaged too; delete this pass and run "
                    "stage 1"
                )
            return
        listed = Quarantine.from_manifest(self._manifest)
        if found is None or found.rows != listed.rows or self._differs(path):
            self.bad.append(f"{path}: rewritten from the manifest")
            self._quarantine = listed

    def _find_shard(self, path: Path) -> None:
        """Add a shard that differs from its manifest or from its own sidecar."""
        beside = path.with_suffix(".json")
        sidecar = self._sidecars.get(beside)
        intact = sidecar is not None and self._sha256(path) == sidecar.sha256
        if intact and not self._differs(path) and not self._differs(beside):
            return
        self._add(f"{path}: recomputed", path, sidecar.sha256 if sidecar else None)
        self._replace(beside, self._sha256(beside) if sidecar else None)

    def _differs(self, path: Path) -> bool:
        """Return whether a file differs from the original.

        Without a manifest, the digests of an interrupted repair decide, except for the files that it made again.
        """
        wanted = self._listed.get(path)
        if wanted is None and self._originals.name(path) not in self._originals.earlier:
            wanted = self._originals.sha256(path)
        return wanted is not None and self._sha256(path) != wanted

    def _sha256(self, path: Path) -> str | None:
        """Return the sha256 of a file, None if it is missing. A shard is read once, if its size can be right."""
        if path not in self._digests:
            self._digests[path] = sha256_or_none(path, self._sizes.get(path, BUDGET.plan_bytes))
        return self._digests[path]
