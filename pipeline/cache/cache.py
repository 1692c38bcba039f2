"""Open a cache, and give access to its passes, shards and samples.

    plan.json                  identity: recipe, teacher weights' sha256, seed, batch and shard size
    codec/                     plain zarr v3 group with the tables of the calibration
    codec.json                 settings of the codec, and the sha256 of each file in codec/
    pass-0/plan.json           shard plan of one pass
    pass-0/shard-00000.tar     both a zarr hierarchy and a webdataset shard
    pass-0/shard-00000.json    sidecar
    pass-0/manifest.json       written last: a pass with a manifest is complete
    images/                    the original files of the images, if they are stored (image_shards.py)
    summary.json               for people

A cache has two digests. `recipe` follows from config and annotation file. `content` also covers the teacher's weights,
the codec's tables and every shard's sha256.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.budget import BUDGET
from pipeline.cache.canonical import digest, read_json
from pipeline.cache.image_shards import FOLDER, load_image_manifest
from pipeline.cache.layout import explain_missing, list_passes, load_pass_plan, pass_folder, probe_passes, shard_name
from pipeline.cache.plain import require_plain_cache
from pipeline.cache.quarantine import Quarantine
from pipeline.cache.reader import ShardReader
from pipeline.cache.schema import GATE, MANIFEST, PLAN, read_codec, read_fields, require_fields
from pipeline.cache.shard_plan import ShardPlan, references
from pipeline.cache.sidecar import load_sidecar
from pipeline.cache.stored_images import StoredImages
from pipeline.cache.versions import FORMATS
from pipeline.errors import CacheError, CorruptCache, StaleCache
from pipeline.records import SampleRef
from pipeline.storage.files import checksum, list_files, read_small
from pipeline.storage.local import files_to_keep_open
from pipeline.storage.place import DELETE, Place, remedy
from pipeline.storage.urls import place

FORMAT = "frs-teacher-cache"
MAKER = "use the config that made it"
OPEN_SHARDS = 320  # open files of one process, if its limit allows: the schedule reads up to 256 shards in turn


def differences(cached: Any, wanted: Any, field: str = "") -> list[str]:
    """Return one line for every field in which two recipes differ, with both values; a `type` before its options."""
    if isinstance(cached, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted(cached.keys() | wanted.keys(), key=lambda key: (key != "type", key)):
            lines += differences(cached.get(key), wanted.get(key), f"{field}.{key}" if field else key)
        return lines
    return [] if cached == wanted else [f"{field}: the cache has {cached!r:.200}, the config wants {wanted!r:.200}"]


class Cache:
    """A cache opened for reading. Methods raise CacheError, CorruptCache or StaleCache, and name the file."""

    def __init__(self, root: str | Place) -> None:
        self.root: Place = place(root)
        require_plain_cache(self.root)
        if not (self.root / "plan.json").is_file():
            raise explain_missing(self.root, "plan.json")
        self.plan: dict[str, Any] = read_json(self.root / "plan.json")
        name, version = self.plan.get("format"), self.plan.get("version")
        if name != FORMAT or type(version) is not int or version not in FORMATS:
            raise StaleCache(
                f"{self.root}: expected format {FORMAT!r} of version {' or '.join(map(str, FORMATS))}, "
                f"found {name!r:.60} of version {version!r:.20}; make a new cache, or use a newer release"
            )
        require_fields(self.plan, PLAN, self.root / "plan.json")
        self.version, self._format = version, FORMATS[version]
        self.plan_digest = digest(self.plan)
        codec = self._read_codec()
        self.codec_digest, self.codec_settings = digest(codec), codec["settings"]
        measured = codec.get("measured")
        self.codec_measured: dict[str, Any] = measured if isinstance(measured, dict) else {}
        self._readers: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()
        self._manifests: dict[int, dict[str, Any]] = {}
        self._probed: list[tuple[int, bool]] | None = None  # passes found by name; each takes one request

    def _read_codec(self) -> dict[str, Any]:
        try:
            return read_codec(self.root / "codec.json")
        except CacheError:
            if (self.root / "codec.json").is_file():
                raise
        raise explain_missing(self.root, "codec.json")

    @property
    def recipe(self) -> dict[str, Any]:
        return self.plan["recipe"]

    def require(self, recipe: dict[str, Any], weights_sha256: str | None = None, next_step: str = MAKER) -> None:
        """Raise StaleCache where the cache was not made from `recipe` and, if known, from these weights.

        `next_step`: the last part of the message, which says what to do.
        """
        lines = differences(self.recipe, recipe)
        if weights_sha256 is not None:
            lines += differences(self.plan["teacher_sha256"], weights_sha256, "teacher weights' sha256")
        if lines:
            more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            raise StaleCache(f"{self.root}: not the cache of this config: {lines[0]}{more}; {next_step}")

    def codec_manifest(self) -> dict[str, Any]:
        """Return codec.json. Raise CorruptCache where a file of codec/ differs from it."""
        manifest = read_codec(self.root / "codec.json")
        folder, listed = self.root / "codec", manifest["files"]
        present = list_files(folder)
        if present is None:
            for name in sorted(listed):  # other files in the folder are never opened
                read_small(folder / name, listed[name], BUDGET.table_bytes)
            return manifest
        for name in sorted({*present, *listed}):
            known = name in present and name in listed
            if not known or checksum(folder / name, most=BUDGET.table_bytes)["sha256"] != listed[name]:
                raise CorruptCache(
                    f"{folder / name}: missing, altered or not listed in codec.json; delete the cache's codec.json and "
                    "run stage 1 again"
                )
        return manifest

    def passes(self) -> list[int]:
        """Return the numbers of the complete passes."""
        return [number for number, complete in self._found_passes() if complete]

    def incomplete(self) -> list[int]:
        """Return the numbers of the passes that were started and have no manifest yet."""
        return [number for number, complete in self._found_passes() if not complete]

    def _found_passes(self) -> list[tuple[int, bool]]:
        listed = list_passes(self.root)
        if listed is not None:
            return listed
        if self._probed is None:
            self._probed = probe_passes(self.root, self.recipe["views"]["finite"])
        return self._probed

    def manifest(self, cache_pass: int) -> dict[str, Any]:
        if cache_pass not in self._manifests:
            manifest = read_fields(pass_folder(self.root, cache_pass) / "manifest.json", MANIFEST)
            if (manifest["plan"], manifest["pass"]) != (self.plan_digest, cache_pass):
                raise StaleCache(f"{self.root}/pass-{cache_pass}: belongs to another plan.json; delete this folder")
            self._manifests[cache_pass] = manifest
        return self._manifests[cache_pass]

    def _listed(self, cache_pass: int, name: str) -> tuple[Place, str]:
        """Return the path of a small file of a pass, and its sha256 in the manifest."""
        path = pass_folder(self.root, cache_pass) / name
        entry = self.manifest(cache_pass)["files"].get(name)
        if entry is None:
            raise CorruptCache(f"{path}: not listed in the manifest; {remedy(path, DELETE)}")
        return path, entry["sha256"]

    def content(self) -> str:
        """Return the digest of everything a student learns from: identity, codec tables, the bytes of every shard."""
        passes = {"passes": {str(n): self._pass_content(n) for n in self.passes()}}
        stored = self.image_manifest()
        return digest({**self._identity(), **passes, **({} if stored is None else {"images": digest(stored)})})

    def pass_contents(self) -> dict[str, str]:
        """Return the content digest of every complete pass by its number. It stays the same if the cache grows."""
        same, passes = self._identity(), self.passes()
        return {str(n): digest({**same, "passes": {str(n): self._pass_content(n)}}) for n in passes}

    def _identity(self) -> dict[str, str]:
        """Return the part of the content digests that all passes share."""
        gate = self.root / "gate.json"
        return self._format.identity(self.plan_digest, self.codec_digest, lambda: digest(read_fields(gate, GATE)))

    def _pass_content(self, cache_pass: int) -> Any:
        return self._format.pass_content(self.manifest(cache_pass))

    def quarantine(self, cache_pass: int) -> Quarantine:
        """Return the images that a complete pass leaves out."""
        return Quarantine.from_manifest(self.manifest(cache_pass))

    def shard_plans(self, cache_pass: int) -> list[ShardPlan]:
        """Return the shard plans of a complete pass, without quarantined images. Checks the sha256 of plan.json."""
        shards = load_pass_plan(self.root, cache_pass, self._listed(cache_pass, "plan.json")[1])
        return self.quarantine(cache_pass).apply(shards)

    def references(self, cache_pass: int) -> list[list[SampleRef]]:
        """Return all samples of a complete pass, shard by shard."""
        return references(self.shard_plans(cache_pass), cache_pass)

    def planned_images(self, cache_pass: int) -> set[int]:
        """Return the ids of the images that a complete pass was planned for, quarantined ones included."""
        stored = {ref.image_id for shard in self.references(cache_pass) for ref in shard}
        return stored | self.quarantine(cache_pass).images

    def images(self) -> set[int]:
        """Return the ids of the images in any complete pass."""
        return {ref.image_id for number in self.passes() for shard in self.references(number) for ref in shard}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files. A spawned worker process opens its own."""
        return {**self.__dict__, "_readers": OrderedDict()}

    def image_manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the stored image files; None if the cache has none."""
        manifest = load_image_manifest(self.root)
        if manifest is not None and manifest["plan"] != self.plan_digest:
            raise StaleCache(f"{self.root / FOLDER}: belongs to another plan.json; delete this folder")
        return manifest

    def stored_images(self) -> StoredImages:
        """Return the stored image files. Raise CacheError if there are none."""
        manifest = self.image_manifest()
        if manifest is None:
            raise CacheError(
                f"{self.root}: has no image files, which cache.images=True needs; run stage 1 with it, or set "
                "cache.images=False to read the image folder"
            )
        return StoredImages(self.root, manifest)

    def shard(self, cache_pass: int, number: int) -> ShardReader:
        """Return the reader of one shard of this cache. Closes the least recently used one if too many are open."""
        key = (cache_pass, number)
        if key not in self._readers:
            self._keep(key, self._open(key))
        self._readers.move_to_end(key)
        return self._readers[key]

    def open_shards(self, keys: Iterable[tuple[int, int]], mapped: Callable[..., Iterable[ShardReader]]) -> None:
        """Open the shards (pass, number) that are not open yet, with `mapped`, the map method of a thread pool."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._readers]
        for key, reader in zip(missing, mapped(self._open, missing)):
            self._keep(key, reader)

    def _open(self, key: tuple[int, int]) -> ShardReader:
        path, sha256 = self._listed(key[0], shard_name(key[1]).replace(".tar", ".json"))
        reader = ShardReader(path.with_suffix(".tar"), load_sidecar(path, sha256))
        wanted = (self.plan_digest, self.codec_digest, self.codec_settings)
        if reader.sidecar.version != self.version:
            raise StaleCache(
                f"{reader.path}: expected a shard of format version {self.version}, found {reader.sidecar.version}; "
                "run stage 1 again"
            )
        if (reader.sidecar.plan, reader.sidecar.codec, reader.attributes["codec"]) != wanted:
            raise StaleCache(f"{reader.path}: made for another plan.json or codec.json; run stage 1 again")
        return reader

    def _keep(self, key: tuple[int, int], reader: ShardReader) -> None:
        self._readers[key] = reader
        if len(self._readers) > files_to_keep_open(OPEN_SHARDS):
            self._readers.popitem(last=False)[1].close()
