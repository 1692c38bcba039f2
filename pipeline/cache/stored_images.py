"""Read the image files that a cache stores, each with its checksum."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipeline.cache import tar
from pipeline.cache.image_shards import FOLDER, ImageSidecar, load_image_plan, load_image_sidecar
from pipeline.cache.layout import shard_name
from pipeline.errors import CacheError, CorruptCache
from pipeline.storage.extents import Fetched, Sha256Extent
from pipeline.storage.place import REPAIR, Place, key_of, remedy, storage_of
from pipeline.storage.ranges import NOTHING, read_verified

OPEN = 64  # open files; opening one again takes microseconds, because its sidecar is kept


class StoredImages:
    """The image files of a cache by image id. A copy in another process reads plan and sidecars again, when needed.

    `manifest`: that of the images. Raise CacheError where a file is missing, CorruptCache where bytes differ.
    """

    def __init__(self, root: Place, manifest: dict[str, Any]) -> None:
        self._root, self._files = root, {name: entry["sha256"] for name, entry in manifest["files"].items()}
        self._forget()

    def _forget(self) -> None:
        self._places: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # sorted ids, shard, index in the shard
        self._planned: list[list[int]] = []
        self._sidecars: dict[int, ImageSidecar] = {}
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process, without open files and tables."""
        return {"_root": self._root, "_files": self._files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def find(self, image_id: int) -> tuple[int, int]:
        """Return shard and index of an image. Raise CacheError where it is not stored."""
        if self._places is None:
            self._planned = load_image_plan(self._root, self._sha256("plan.json"))
            rows = [(image, n, index) for n, ids in enumerate(self._planned) for index, image in enumerate(ids)]
            table = np.array(sorted(rows), np.int64).reshape(-1, 3)
            self._places = (table[:, 0], table[:, 1].astype(np.int32), table[:, 2].astype(np.int32))
        ids, shards, indices = self._places
        at = int(np.searchsorted(ids, image_id))
        if at == len(ids) or ids[at] != image_id:
            raise CacheError(f"{self._root / FOLDER}: the file of image {image_id} is not stored; run stage 1 again")
        return int(shards[at]), int(indices[at])

    def open_shards(self, images: Iterable[int], mapped: Callable[..., Iterable[ImageSidecar]]) -> None:
        """Read the sidecars of the shards of these images with `mapped`, the map method of a thread pool."""
        missing = [n for n in dict.fromkeys(self.find(image)[0] for image in images) if n not in self._sidecars]
        self._sidecars.update(zip(missing, mapped(self._load, missing)))

    def extent(self, image_id: int) -> Sha256Extent:
        """Return the extent of an image in its shard."""
        shard, index = self.find(image_id)
        return self._sidecar(shard).extent(index)

    def fetches(self, shard: int, images: Iterable[int]) -> list[Callable[[], Fetched]]:
        """Return calls that prefetch these images of one shard for `read`, in any thread. Empty if reads are local."""
        return self._ranges(shard).fetches([self.extent(image) for image in images])

    def read(self, image_id: int, fetched: Fetched = NOTHING) -> bytes:
        """Return the file of an image."""
        return bytes(self._member(image_id, fetched)[1])

    def name(self, image_id: int) -> str:
        """Return the name of an image's tar member, which has the suffix of its file."""
        return self._member(image_id, NOTHING)[0]

    def _member(self, image_id: int, fetched: Fetched) -> tuple[str, memoryview]:
        shard, index = self.find(image_id)
        path, extent = self._path(shard), self._sidecar(shard).extent(index)
        data = read_verified(lambda wanted: self._ranges(shard).read(wanted), extent, fetched)
        try:
            if data is None:
                raise CorruptCache("size or checksum differs from the sidecar")
            members = list(tar.parse(data))
            if len(members) != 1 or members[0][0].split(".")[0] != str(image_id):
                raise CorruptCache("its tar member belongs to another image")
        except CorruptCache as error:
            raise CorruptCache(f"{path}: file of image {image_id}: {error}; {remedy(path, REPAIR)}") from error
        return members[0]

    def _sha256(self, name: str) -> str:
        if name not in self._files:
            path = self._root / FOLDER / name
            raise CorruptCache(f"{path}: not listed in the manifest of the images; {remedy(path, REPAIR)}")
        return self._files[name]

    def _path(self, shard: int) -> Place:
        return self._root / FOLDER / shard_name(shard)

    def _load(self, shard: int) -> ImageSidecar:
        path = self._path(shard).with_suffix(".json")
        sidecar = load_image_sidecar(path, self._sha256(path.name))
        if sidecar.ids.tolist() != self._planned[shard]:
            raise CorruptCache(f"{path}: its images are not those of plan.json; {remedy(path, REPAIR)}")
        return sidecar

    def _sidecar(self, shard: int) -> ImageSidecar:
        if shard not in self._sidecars:
            self._sidecars[shard] = self._load(shard)
        return self._sidecars[shard]

    def _ranges(self, shard: int) -> Any:
        if shard not in self._open:
            path, sidecar = self._path(shard), self._sidecar(shard)
            opened = storage_of(path).open_ranges(key_of(path), sidecar)
            if opened.size != sidecar.size:
                opened.close()
                raise CorruptCache(
                    f"{path}: expected {sidecar.size} bytes, found {opened.size}; {remedy(path, REPAIR)}"
                )
            self._open[shard] = opened
            if len(self._open) > OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        return self._open[shard]
