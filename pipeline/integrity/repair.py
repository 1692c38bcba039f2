"""Repair a damaged cache: damaged files are computed again, whole ones are kept.

On the machine that made the cache (CPU, same threads and libraries) the result is the original, byte for byte. Where it
is not, the pass gets a new manifest and so the cache a new `content`: a student half trained from the old one is then
refused by name, not misled.
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
    read_or_none,
    read_whole_codec,
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
from pipeline.teacher.model import Teacher, own_device

Files = dict[str, dict[str, Any]]


def repair(cfg: Config, sections: Sections, log: Log, progress: Progress) -> list[str]:
    """Find and repair what is damaged in a config's cache. Returns a line for each damage; none where it was whole.

    Raises StaleCache where the cache is another config's, CorruptCache where its tables are lost for good, CacheError
    where it has passes that stage 1 of this config would not make again.
    """
    place = sections.cache.place()
    root = local_path(place)
    if root is None:
        raise CacheError(f"{place}: repair needs a folder; copy the cache to one, repair it there and copy it back")
    if not (root / "plan.json").exists() and not list(root.glob("pass-*/*")):
        raise CacheError(f"{root}: no cache here (neither plan.json nor a pass); check cache.dir")
    with locked(root):
        work = CacheRepair(root, cfg, sections, log, progress)
        work.repair_identity()
        work.repair_codec()
        for folder in work.folders:
            work.clear_pass(folder)
    if work.bad:
        for line in work.bad:
            log(f"bad      {line}")
        cache_teacher(cfg, sections, log, progress)
        changed = [name for name, sha in work.known.items() if sha256_file(root / name) != sha]
        log(f"repaired {_describe_changes(changed)}")
    return work.bad


def _describe_changes(changed: list[str]) -> str:
    if not changed:
        return "equal to the original, byte for byte"
    return (
        f"{len(changed)} files are not the original's bytes (first: {changed[0]}): another machine, thread count or "
        "library; the cache is whole and has a new content digest"
    )


class CacheRepair:
    """A cache under repair. `bad`: a line for each damage; `known`: sha256 that manifests give files that were lost."""

    def __init__(self, root: Path, cfg: Config, sections: Sections, log: Log, progress: Progress) -> None:
        inputs = read_inputs(cfg, sections)
        plan = make_plan(sections, inputs.recipe, inputs.teacher.weights_sha256())
        self.root, self.plan, self.bad, self.known = root, plan, list[str](), dict[str, str]()
        self._sections, self._images, self._views, self._spec = sections, inputs.images, inputs.views, inputs.teacher
        self._log, self._progress = log, progress
        numbers = [number for number, _ in list_passes(root) or []]
        made = expected_passes(sections, inputs.views)
        if numbers and numbers[-1] not in made:
            raise CacheError(
                f"{root}: holds pass-{numbers[-1]}, this config makes {len(made)} passes; repair with the cache.passes "
                "and views that the cache was made with"
            )
        self.folders = [pass_folder(root, number) for number in numbers]
        self._sidecars = {path: read_or_none(partial(load_sidecar, path)) for path in find_sidecar_paths(self.folders)}

    def _calibration_job(self, root: Path) -> Job:
        """Build what calibration works with; this loads the teacher."""
        sections, images, views = self._sections, self._images, self._views
        teacher = Teacher(self._spec, images.classes, own_device(), sections.teacher.tf32)
        return Job(root, sections, images, views, teacher, self.plan, self._log, self._progress, Ranks())

    def _most_common(self, field: Callable[[Sidecar], str]) -> str | None:
        """Return the digest that most of the shards carry."""
        found = Counter(field(sidecar) for sidecar in self._sidecars.values() if sidecar)
        return found.most_common(1)[0][0] if found else None

    def repair_identity(self) -> None:
        """Write plan.json again from the config, if the shards carry its digest; let gate.json be measured again."""
        path, wanted = self.root / "plan.json", digest(self.plan)
        if self._most_common(lambda s: s.plan) not in (None, wanted):
            raise StaleCache(
                f"{self.root}: its shards were made with another config, teacher or data set than this one"
            )
        found = read_or_none(lambda: read_fields(path, PLAN))
        if found is None:
            self.bad.append(f"{path}: written again from the config; the shards carry its digest")
            write_json(path, self.plan)
        elif digest(found) != wanted:
            raise StaleCache(
                f"{path}: not the plan of this config; repair with the config that the cache was made with"
            )
        gate = self.root / "gate.json"
        if read_or_none(lambda: read_fields(gate, GATE)) is None:
            self.bad.append(f"{gate}: the teacher is measured again")
            gate.unlink(missing_ok=True)

    def repair_codec(self) -> None:
        """Calibrate damaged tables again, and keep them if the shards carry their digest. Raises CorruptCache."""
        if read_or_none(lambda: load_codec(self.root, read_whole_codec(self.root))) is not None:
            for path in find_foreign_files(self.root / "codec", read_whole_codec(self.root)["files"]):
                self.bad.append(f"{path}: no file of the cache, removed")
                path.unlink()
            return
        wanted, scratch = self._most_common(lambda s: s.codec), self.root / "repair.tmp"
        self.bad.append(f"{self.root / 'codec'}: calibrated again")
        shutil.rmtree(scratch, ignore_errors=True)
        load_or_calibrate_codec(self._calibration_job(scratch))
        found = digest(read_fields(scratch / "codec.json", CODEC))
        if wanted not in (None, found):
            shutil.rmtree(scratch)
            raise CorruptCache(
                f"{self.root}/codec: damaged, and calibrating again gave other tables (codec {found[:12]}, the shards "
                f"were coded with {wanted:.12}): another machine, thread count or library. Bring the folder codec/ and "
                "codec.json back from a copy, or make the cache anew"
            )
        (self.root / "codec.json").unlink(missing_ok=True)
        shutil.rmtree(self.root / "codec", ignore_errors=True)
        (scratch / "codec").rename(self.root / "codec")
        (scratch / "codec.json").rename(self.root / "codec.json")
        shutil.rmtree(scratch)

    def clear_pass(self, folder: Path) -> None:
        """Delete what stage 1 has to make again: sidecars of damaged shards, small files, the manifest."""
        manifest = read_or_none(lambda: read_fields(folder / "manifest.json", MANIFEST))
        files: Files = manifest["files"] if manifest else {}
        before = len(self.bad)
        self._clear_small_files(folder, manifest, files)
        shards = {path.with_suffix(".tar") for path in self._sidecars if path.parent == folder}
        shards |= {folder / name for name in files if name.endswith(".tar")}
        for path in sorted(shards):
            self._clear_shard(path, files)
        if manifest is None:
            self.bad.append(f"{folder / 'manifest.json'}: written again from the sidecars")
        if len(self.bad) > before:
            discard(folder / "manifest.json")

    def _clear_small_files(self, folder: Path, manifest: dict[str, Any] | None, files: Files) -> None:
        self._restore_quarantine(folder, manifest)
        plan = folder / "plan.json"
        if self._differs(plan, files) or read_or_none(lambda: read_fields(plan, PASS_PLAN)) is None:
            self.bad.append(f"{plan}: planned again")
            plan.unlink(missing_ok=True)

    def _restore_quarantine(self, folder: Path, manifest: dict[str, Any] | None) -> None:
        path = folder / "quarantine.json"
        listed = Quarantine.from_manifest(manifest) if manifest else Quarantine({})
        damaged = path.exists() and read_or_none(lambda: Quarantine.load(folder)) is None
        lost = bool(listed.images) and not path.exists()
        if not damaged and not lost:
            return
        if manifest is None:
            raise CorruptCache(f"{path}: damaged, and so is the manifest that repeats it; make this pass anew")
        self.bad.append(f"{path}: written again from the manifest")
        listed.save(folder)

    def _clear_shard(self, path: Path, files: Files) -> None:
        sidecar = path.with_suffix(".json")
        known = self._sidecars.get(sidecar) or read_or_none(lambda: load_sidecar(sidecar))
        whole = known is not None and path.is_file() and sha256_or_none(path) == known.sha256
        # Both are asked of the manifest, so that what was lost is known to be what comes back.
        if (self._differs(path, files) | self._differs(sidecar, files)) or not whole:
            self.bad.append(f"{path}: computed again")
            sidecar.unlink(missing_ok=True)

    def _differs(self, path: Path, files: Files) -> bool:
        """Is a file not the one that the manifest lists? Remembers what it should be."""
        wanted = files.get(path.name, {}).get("sha256")
        if wanted is None or (path.is_file() and sha256_or_none(path) == wanted):
            return False
        self.known[path.relative_to(self.root).as_posix()] = wanted
        return True
