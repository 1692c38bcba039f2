"""Check the image files that a cache stores, and delete damaged ones, which stage 1 then stores again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.cache.cache import Cache
from pipeline.cache.image_shards import (
    FOLDER,
    load_image_manifest,
    load_image_plan,
    load_image_sidecar,
)
from pipeline.cache.layout import shard_name
from pipeline.cache.manifest import check_files
from pipeline.errors import CacheError, CorruptCache, PipelineError
from pipeline.integrity.damage import find_sidecar_paths, read_or_none, sha256_or_none
from pipeline.integrity.originals import Originals
from pipeline.progress import LARGE_FILE, Log
from pipeline.storage.files import discard, local_path
from pipeline.storage.place import AGAIN, REPAIR, Place, remedy


def find_image_faults(cache: Cache, log: Log) -> Iterator[PipelineError]:
    """Yield an error for each fault of the stored image files: damaged, unlisted, or not those of the passes."""
    folder = cache.root / FOLDER
    try:
        manifest = cache.image_manifest()
        if manifest is None:
            if (folder / "plan.json").exists():
                todo = remedy(folder, AGAIN)
                yield CacheError(f"{folder}: not complete, because manifest.json is missing; {todo}")
            return
        if manifest["bytes"] > LARGE_FILE or local_path(cache.root) is None:
            log(f"images   reading {len(manifest['files'])} files, {manifest['bytes'] / 1e6:.0f} MB")
        shards = load_image_plan(cache.root, manifest["files"].get("plan.json", {}).get("sha256", "missing"))
        wanted = {shard_name(n): ids for n, ids in enumerate(shards)}
        yield from _compare_lists(cache, folder, wanted, manifest["files"].keys())

        def check(path: Place) -> CacheError | None:
            if load_image_sidecar(path).ids.tolist() == wanted.get(path.with_suffix(".tar").name):
                return None
            return CorruptCache(f"{path}: its images are not those of plan.json; {remedy(path, REPAIR)}")

        yield from check_files(folder, manifest, check)
    except PipelineError as error:
        yield error


def _compare_lists(cache: Cache, folder: Place, wanted: dict[str, list[int]], listed: object) -> Iterator[CacheError]:
    """Yield an error where the manifest, the plan and the passes do not have the same shards and images."""
    expected = {"plan.json", *wanted, *(name.replace(".tar", ".json") for name in wanted)}
    if expected != set(listed):  # type: ignore[call-overload]
        path = folder / "manifest.json"
        yield CorruptCache(f"{path}: its files are not those of plan.json; {remedy(path, REPAIR)}")
    stored = {image for ids in wanted.values() for image in ids}
    lacking = sorted(cache.images() - stored)
    if lacking:
        yield CorruptCache(
            f"{folder}: lacks the files of {len(lacking)} images (first: {lacking[0]}); run stage 1 again"
        )


class ImageRepair:
    """The repair of images/, as PassRepair repairs a pass. `plan`: digest of the cache's plan.json."""

    def __init__(self, root: Path, plan: str, originals: Originals) -> None:
        self._root, self._folder, self._plan, self._originals = root, root / FOLDER, plan, originals
        self.bad: list[str] = []
        self._cleared: list[Path] = []

    def find(self) -> None:
        """Find the damaged files, and keep the digests of the originals. Changes nothing."""
        if not self._folder.is_dir():
            return
        path = self._folder / "manifest.json"
        manifest = read_or_none(partial(load_image_manifest, self._root))
        if manifest is not None and manifest["plan"] != self._plan:
            manifest = None
        listed = {self._folder / n: entry["sha256"] for n, entry in manifest["files"].items()} if manifest else {}
        if not self._intact(self._folder / "plan.json", listed):
            self._add(f"{self._folder / 'plan.json'}: written again", self._folder / "plan.json", listed)
        tars = {path.with_suffix(".tar") for path in find_sidecar_paths([self._folder])}
        for tar in sorted(tars | {path for path in listed if path.suffix == ".tar"}):
            if not self._intact(tar, listed):
                beside = tar.with_suffix(".json")
                self._add(f"{tar}: stored again", beside, listed)
                self._originals.replace(tar, listed.get(tar))
        if manifest is None:
            self.bad.append(f"{path}: rewritten from the sidecars")
        if self.bad:
            for file, sha256 in listed.items():
                self._originals.know(file, sha256)
            self._originals.replace(path, sha256_or_none(path) if manifest else None)
            self._cleared.append(path)

    def clear(self) -> None:
        """Delete the files that stage 1 must make again."""
        for path in self._cleared:
            discard(path)

    def _intact(self, path: Path, listed: dict[Path, str]) -> bool:
        """Return whether a file is sound and, if the manifest lists it, unchanged. A tar counts with its sidecar."""
        if path.suffix == ".json":
            sound = read_or_none(partial(load_image_plan, self._root)) is not None
            return sound and listed.get(path) in (None, sha256_or_none(path))
        beside = path.with_suffix(".json")
        sidecar = read_or_none(partial(load_image_sidecar, beside))
        found = sha256_or_none(path)
        if sidecar is None or found != sidecar.sha256:
            return False
        return listed.get(path) in (None, found) and listed.get(beside) in (None, sha256_or_none(beside))

    def _add(self, line: str, path: Path, listed: dict[Path, str]) -> None:
        self.bad.append(line)
        self._originals.replace(path, listed.get(path))
        self._cleared.append(path)
