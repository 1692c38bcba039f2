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

from pipeline.cache.canonical import digest, write_json
from pipeline.cache.layout import CODEC_COPY, list_passes, pass_folder, read_recorded_passes
from pipeline.cache.plain import locked_cache
from pipeline.cache.schema import GATE, PLAN, read_codec, read_fields
from pipeline.cache.sidecar import Sidecar, load_sidecar
from pipeline.cache.versions import FORMATS
from pipeline.calibration.calibrate import load_or_calibrate_codec
from pipeline.codecs.group import load_codec
from pipeline.data.shard_planning import expected_passes
from pipeline.errors import CacheError, CorruptCache, StaleCache
from pipeline.integrity.codec_copy import renew_copy, restore_codec
from pipeline.integrity.damage import find_foreign_files, find_sidecar_paths, read_intact_codec, read_or_none
from pipeline.integrity.image_files import ImageRepair
from pipeline.integrity.originals import Originals
from pipeline.integrity.repair_pass import PassRepair
from pipeline.mmdet_compat.registry import Config
from pipeline.progress import LARGE_FILE, Log, Progress
from pipeline.recipe import announce_inputs, read_inputs
from pipeline.sections import Sections
from pipeline.stage1.job import Job, make_plan
from pipeline.stage1.ranks import Ranks
from pipeline.stage1.run import cache_teacher
from pipeline.storage.files import local_path
from pipeline.storage.local import sha256_file
from pipeline.teacher.model import load_teacher


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
    with locked_cache(root):
        work = CacheRepair(root, cfg, sections, log, progress)
        work.repair_identity()
        work.repair_codec()
        work.repair_passes()
    if work.bad:
        for line in work.bad:
            log(f"damaged  {line}")
        cache_teacher(cfg, sections, log, progress)
    if work.bad or work.originals:  # an earlier repair was interrupted, and stage 1 ended its work
        log(f"result   {work.originals.compare()}")
        work.originals.discard()
    return work.bad


class CacheRepair:
    """A cache under repair. `bad`: a line for each damaged file; `originals`: of the files that are replaced."""

    def __init__(self, root: Path, cfg: Config, sections: Sections, log: Log, progress: Progress) -> None:
        announce_inputs(cfg, sections, log)
        inputs = read_inputs(cfg, sections)
        plan = make_plan(sections, inputs.recipe, inputs.teacher.weights_sha256())
        self.root, self.plan, self.bad = root, plan, list[str]()
        self.originals = Originals(root, digest(plan), FORMATS[plan["version"]].covers)
        self._sections, self._images, self._views, self._spec = sections, inputs.images, inputs.views, inputs.teacher
        self._log, self._progress = log, progress
        numbers = [number for number, _ in list_passes(root) or []]
        self._expected = expected_passes(sections, inputs.views)
        if numbers and numbers[-1] not in self._expected:
            raise CacheError(
                f"{root}: found pass-{numbers[-1]}, but this config makes {len(self._expected)} passes; use the "
                "cache.passes and views that the cache was made with"
            )
        self._folders = [pass_folder(root, number) for number in numbers]
        self._sidecars = {path: read_or_none(partial(load_sidecar, path)) for path in find_sidecar_paths(self._folders)}

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
            digest_found = "; the shards have its digest" if used else ""
            self._replace(f"{path}: rewritten from the config{digest_found}", path, known=used is not None)
            write_json(path, self.plan)
        elif digest(found) != wanted:
            raise StaleCache(
                f"{path}: digest {digest(found):.12}, this config's plan has {wanted:.12}; use the config that made "
                "the cache"
            )
        gate = self.root / "gate.json"
        if read_or_none(lambda: read_fields(gate, GATE)) is None:
            self._replace(f"{gate}: remeasured with the teacher", gate)
            gate.unlink(missing_ok=True)

    def repair_codec(self) -> None:
        """Recalibrate damaged tables. Raise CorruptCache where the shards have another digest than the new tables."""
        manifest = read_or_none(lambda: read_intact_codec(self.root))
        codec = None if manifest is None else read_or_none(lambda: load_codec(self.root, manifest))
        if codec is not None:
            for path in find_foreign_files(self.root / "codec", manifest["files"]):
                self.bad.append(f"{path}: not a file of the cache; removed")
                path.unlink()
            if renew_copy(self.root, manifest, codec.trained):
                self.bad.append(f"{self.root / CODEC_COPY}: copied again from codec/")
            return
        wanted, scratch = self._most_common(lambda s: s.codec), self.root / "repair.tmp"
        if restore_codec(self.root, wanted):
            self.bad.append(f"{self.root / 'codec'}: restored from {CODEC_COPY}")
            return
        listed = read_or_none(lambda: read_codec(self.root / "codec.json"))
        if listed is not None:  # also the digest of all tables
            self.originals.know(self.root / "codec.json", sha256_file(self.root / "codec.json"))
        self._replace(f"{self.root / 'codec'}: recalibrated", self.root / "codec.json", known=wanted is not None)
        shutil.rmtree(scratch, ignore_errors=True)
        load_or_calibrate_codec(self._calibration_job(scratch))
        found = digest(read_codec(scratch / "codec.json"))
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
        renew_copy(self.root, read_intact_codec(self.root), (scratch / CODEC_COPY).exists())
        shutil.rmtree(scratch)

    def repair_passes(self) -> None:
        """Delete the files of all passes that stage 1 must make again: damaged ones, and the manifests of their passes.

        The digests of the originals are written before anything is deleted.
        """
        size = sum(sidecar.size for sidecar in self._sidecars.values() if sidecar)
        if size > LARGE_FILE:
            self._log(f"cache    reading {len(self._sidecars)} shards, {size / 1e6:.0f} MB")
        passes = [PassRepair(folder, self._sidecars, self.originals) for folder in self._folders]
        for one in passes:
            one.find()
            self.bad += one.bad
        for folder in (pass_folder(self.root, number) for number in self._expected):
            if folder not in self._folders:
                self._replace(f"{folder}: missing; computed", folder / "manifest.json")
        images = ImageRepair(self.root, digest(self.plan), self.originals)
        images.find()
        self.bad += images.bad
        self._check_summary()
        self.originals.save()
        for one in passes:
            one.clear()
        images.clear()

    def _check_summary(self) -> None:
        """Note a damaged summary.json. Stage 1 always writes it, so it is no original."""
        try:
            read_recorded_passes(self.root)
        except CorruptCache:
            self.bad.append(f"{self.root / 'summary.json'}: rewritten")

    def _replace(self, line: str, path: Path, known: bool = False) -> None:
        """Note a damaged file before it is replaced. `known`: the result is compared with a digest in the shards."""
        self.bad.append(line)
        if not known:
            self.originals.replace(path)
        self.originals.save()
