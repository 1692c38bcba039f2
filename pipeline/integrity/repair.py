"""Repair a damaged cache: recompute damaged files and keep intact ones.

On the machine that made the cache (CPU, same threads and libraries) the result is byte for byte the original. Otherwise
the pass gets a new manifest, and the cache a new `content` digest. Resuming a student of the old cache then raises
StaleCache.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cache.canonical import digest, write_json
from pipeline.cache.layout import list_passes, pass_folder
from pipeline.cache.quarantine import Quarantine
from pipeline.cache.schema import CODEC, GATE, MANIFEST, PASS_PLAN, PLAN, read_fields
from pipeline.cache.sidecar import Sidecar, load_sidecar
from pipeline.calibration.calibrate import load_or_calibrate_codec
from pipeline.codecs.group import load_codec
from pipeline.config import Sections
from pipeline.data.shard_planning import expected_passes
from pipeline.errors import CacheError, CorruptCache, StaleCache
from pipeline.integrity.damage import (
    find_foreign_files,
    find_sidecar_paths,
    read_intact_codec,
    read_or_none,
    sha256_or_none,
)
from pipeline.mmdet_compat.registry import Config
from pipeline.progress import Log, Progress
from pipeline.recipe import read_inputs
from pipeline.stage1.job import Job, make_plan
from pipeline.stage1.ranks import Ranks
from pipeline.stage1.run import cache_teacher
from pipeline.storage.files import discard, local_path
from pipeline.storage.local import sha256_file
from pipeline.storage.lock import locked
from pipeline.teacher.model import load_teacher

Files = dict[str, dict[str, Any]]


def repair(cfg: Config, sections: Sections, log: Log, progress: Progress) -> list[str]:
    """Find and repair damaged files of a config's cache. Return one line for each; none if the cache is intact.

    Raise StaleCache where another config made the cache, CorruptCache where its tables cannot be restored, and
    CacheError where it has passes that stage 1 of this config does not make.
    """
    place = sections.cache.place()
    root = local_path(place)
    if root is None:
        raise CacheError(
            f"{place}: repair needs a local folder; copy the cache to one, repair it there, and copy it back"
        )
    if not (root / "plan.json").exists() and not list(root.glob("pass-*/*")):
        raise CacheError(f"{root}: no cache here (found neither plan.json nor a pass); check cache.dir")
    with locked(root):
        work = CacheRepair(root, cfg, sections, log, progress)
        work.repair_identity()
        work.repair_codec()
        for folder in work.folders:
            work.clear_pass(folder)
    if work.bad:
        for line in work.bad:
            log(f"damaged  {line}")
        cache_teacher(cfg, sections, log, progress)
        changed = [name for name, sha in work.known.items() if sha256_file(root / name) != sha]
        log(f"result   {_describe_changes(changed)}")
    return work.bad


def _describe_changes(changed: list[str]) -> str:
    if not changed:
        return "byte for byte equal to the original"
    return (
        f"{len(changed)} files differ from the original (first: {changed[0]}); the machine, the thread "
        "count or a library probably differs. The cache is intact and has a new content digest"
    )


class CacheRepair:
    """A cache under repair. `bad`: a line for each damaged file; `known`: the sha256 of lost files in the manifests."""

    def __init__(self, root: Path, cfg: Config, sections: Sections, log: Log, progress: Progress) -> None:
        inputs = read_inputs(cfg, sections)
        plan = make_plan(sections, inputs.recipe, inputs.teacher.weights_sha256())
        self.root, self.plan, self.bad, self.known = root, plan, list[str](), dict[str, str]()
        self._sections, self._images, self._views, self._spec = sections, inputs.images, inputs.views, inputs.teacher
        self._log, self._progress = log, progress
        numbers = [number for number, _ in list_passes(root) or []]
        expected = expected_passes(sections, inputs.views)
        if numbers and numbers[-1] not in expected:
            raise CacheError(
                f"{root}: found pass-{numbers[-1]}, but this config makes {len(expected)} passes; use the cache.passes "
                "and views that the cache was made with"
            )
        self.folders = [pass_folder(root, number) for number in numbers]
        self._sidecars = {path: read_or_none(partial(load_sidecar, path)) for path in find_sidecar_paths(self.folders)}

    def _calibration_job(self, root: Path) -> Job:
        """Build the job of a calibration. This loads the teacher."""
        sections, images, views = self._sections, self._images, self._views
        teacher = load_teacher(sections, self._spec, images.classes)
        return Job(root, sections, images, views, teacher, self.plan, self._log, self._progress, Ranks())

    def _most_common(self, field: Callable[[Sidecar], str]) -> str | None:
        """Return the most common digest in the sidecars."""
        found = Counter(field(sidecar) for sidecar in self._sidecars.values() if sidecar)
        return found.most_common(1)[0][0] if found else None

    def repair_identity(self) -> None:
        """Rewrite plan.json from the config if the shards have its digest. Remove a damaged gate.json."""
        path, wanted = self.root / "plan.json", digest(self.plan)
        used = self._most_common(lambda s: s.plan)
        if used not in (None, wanted):
            raise StaleCache(
                f"{self.root}: shards were made with another config, teacher or data set (plan {used:.12}, this config "
                f"has {wanted:.12}); use the config that made the cache"
            )
        found = read_or_none(lambda: read_fields(path, PLAN))
        if found is None:
            self.bad.append(f"{path}: rewritten from the config; the shards have its digest")
            write_json(path, self.plan)
        elif digest(found) != wanted:
            raise StaleCache(
                f"{path}: digest {digest(found):.12}, this config's plan has {wanted:.12}; use the config that made "
                "the cache"
            )
        gate = self.root / "gate.json"
        if read_or_none(lambda: read_fields(gate, GATE)) is None:
            self.bad.append(f"{gate}: remeasured with the teacher")
            gate.unlink(missing_ok=True)

    def repair_codec(self) -> None:
        """Recalibrate damaged tables. Raise CorruptCache where the shards have another digest than the new tables."""
        if read_or_none(lambda: load_codec(self.root, read_intact_codec(self.root))) is not None:
            for path in find_foreign_files(self.root / "codec", read_intact_codec(self.root)["files"]):
                self.bad.append(f"{path}: not a file of the cache; removed")
                path.unlink()
            return
        wanted, scratch = self._most_common(lambda s: s.codec), self.root / "repair.tmp"
        self.bad.append(f"{self.root / 'codec'}: recalibrated")
        shutil.rmtree(scratch, ignore_errors=True)
        load_or_calibrate_codec(self._calibration_job(scratch))
        found = digest(read_fields(scratch / "codec.json", CODEC))
        if wanted not in (None, found):
            shutil.rmtree(scratch)
            raise CorruptCache(
                f"{self.root}/codec: damaged, and calibrating again gave other tables (codec {found[:12]}, the shards "
                f"use {wanted:.12}); the machine, the thread count or a library probably differs. Restore codec/ and "
                "codec.json from a copy, or make a new cache"
            )
        (self.root / "codec.json").unlink(missing_ok=True)
        shutil.rmtree(self.root / "codec", ignore_errors=True)
        (scratch / "codec").rename(self.root / "codec")
        (scratch / "codec.json").rename(self.root / "codec.json")
        shutil.rmtree(scratch)

    def clear_pass(self, folder: Path) -> None:
        """Delete the files that stage 1 must make again: sidecars of damaged shards, small files, the manifest."""
        manifest = read_or_none(lambda: read_fields(folder / "manifest.json", MANIFEST))
        files: Files = manifest["files"] if manifest else {}
        before = len(self.bad)
        self._clear_small_files(folder, manifest, files)
        shards = {path.with_suffix(".tar") for path in self._sidecars if path.parent == folder}
        shards |= {folder / name for name in files if name.endswith(".tar")}
        for path in sorted(shards):
            self._clear_shard(path, files)
        if manifest is None:
            self.bad.append(f"{folder / 'manifest.json'}: rewritten from the sidecars")
        if len(self.bad) > before:
            discard(folder / "manifest.json")

    def _clear_small_files(self, folder: Path, manifest: dict[str, Any] | None, files: Files) -> None:
        self._restore_quarantine(folder, manifest)
        plan = folder / "plan.json"
        if self._differs(plan, files) or read_or_none(lambda: read_fields(plan, PASS_PLAN)) is None:
            self.bad.append(f"{plan}: recomputed")
            plan.unlink(missing_ok=True)

    def _restore_quarantine(self, folder: Path, manifest: dict[str, Any] | None) -> None:
        path = folder / "quarantine.json"
        listed = Quarantine.from_manifest(manifest) if manifest else Quarantine({})
        damaged = path.exists() and read_or_none(lambda: Quarantine.load(folder)) is None
        lost = bool(listed.images) and not path.exists()
        if not damaged and not lost:
            return
        if manifest is None:
            raise CorruptCache(
                f"{path}: damaged, and the manifest, which has a copy, is damaged too; delete this pass and run stage 1"
            )
        self.bad.append(f"{path}: rewritten from the manifest")
        listed.save(folder)

    def _clear_shard(self, path: Path, files: Files) -> None:
        sidecar = path.with_suffix(".json")
        known = self._sidecars.get(sidecar) or read_or_none(lambda: load_sidecar(sidecar))
        intact = known is not None and path.is_file() and sha256_or_none(path) == known.sha256
        # Check both files, without a short circuit: `_differs` records the expected sha256 of each.
        if (self._differs(path, files) | self._differs(sidecar, files)) or not intact:
            self.bad.append(f"{path}: recomputed")
            sidecar.unlink(missing_ok=True)

    def _differs(self, path: Path, files: Files) -> bool:
        """Return whether a file differs from the manifest. If so, record the expected sha256 in `known`."""
        wanted = files.get(path.name, {}).get("sha256")
        if wanted is None or (path.is_file() and sha256_or_none(path) == wanted):
            return False
        self.known[path.relative_to(self.root).as_posix()] = wanted
        return True
