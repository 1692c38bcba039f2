"""The original files of the images, stored once each in shards of their own: the folder images/ of a cache.

    images/plan.json           the ids of the images in each shard
    images/shard-00000.tar     one member for each image, `<id>.<suffix>`: its file, byte for byte
    images/shard-00000.json    sidecar: the extent of every member
    images/manifest.json       written last: without it the images are incomplete

An image is drawn in every pass, each time in another order, so it cannot be beside all of its samples. The order here
is that of the first pass.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from pipeline.budget import BUDGET
from pipeline.cache import tar
from pipeline.cache.canonical import read_json, write_json
from pipeline.cache.layout import shard_name
from pipeline.cache.schema import IMAGE_MANIFEST, IMAGE_PLAN, read_fields
from pipeline.errors import CacheError, CorruptCache, StoreError
from pipeline.storage.extents import HEX, Sha256Extent, columns
from pipeline.storage.files import atomic_file, checksum, file_size
from pipeline.storage.place import DELETE, Place, call_each, remedy
from pipeline.text import one_line

FOLDER = "images"
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


@dataclass(frozen=True)
class ImageSidecar:
    """The extents of one shard of images, as columns: a cache of COCO has 118,000 of them. Implements ShardLayout."""

    size: int
    sha256: str
    ids: np.ndarray
    ends: np.ndarray  # of each member; the first one begins at 0
    digests: np.ndarray  # (N, 32) uint8

    def extent(self, index: int) -> Sha256Extent:
        """Return the extent of one image."""
        offset = int(self.ends[index - 1]) if index else 0
        size = int(self.ends[index]) - offset
        return Sha256Extent(offset, size, self.digests[index].tobytes().hex(), int(self.ids[index]))

    @property
    def extents(self) -> tuple[Sha256Extent, ...]:
        end = int(self.ends[-1]) if len(self.ends) else 0
        tail = Sha256Extent(end, self.size - end, hashlib.sha256(tar.END).hexdigest())
        return (*map(self.extent, range(len(self.ids))), tail)


def member_name(image_id: int, file_name: str) -> str:
    """Return the name of an image's tar member. webdataset takes the id as key, and the suffix as field."""
    suffix = PurePath(file_name).suffix
    return f"{image_id}{suffix.lower() if SUFFIX.fullmatch(suffix) else '.image'}"


def write_image_shard(path: Place, images: Iterable[tuple[int, str, bytes]]) -> None:
    """Write a shard of (id, file name, content), then its sidecar."""
    at, found, rows = 0, hashlib.sha256(), []
    with atomic_file(path) as file:
        for image_id, name, content in images:
            member = tar.member(member_name(image_id, name), content)
            extent = Sha256Extent.of(at, member, image_id)
            rows.append([getattr(extent, column) for column in columns(extent)])
            file.write(member)
            found.update(member)
            at += len(member)
        file.write(tar.END)
        found.update(tar.END)
    sidecar = {"shard": path.name, "size": at + len(tar.END), "sha256": found.hexdigest()}
    write_json(path.with_suffix(".json"), {**sidecar, "samples": rows, "sample_columns": columns(Sha256Extent)})


def load_image_sidecar(path: Place, sha256: str | None = None) -> ImageSidecar:
    """Read and check a sidecar. `sha256`: that of the manifest. Raise CacheError or CorruptCache."""
    value = read_json(path, sha256)
    try:
        if value["sample_columns"] != columns(Sha256Extent) or value["shard"] != path.with_suffix(".tar").name:
            raise ValueError("belongs to another shard or format")
        end, rows = 0, [Sha256Extent(*row) for row in value["samples"]]
        for extent in rows:
            sound = extent.is_valid() and 0 < extent.size <= BUDGET.image_bytes + 2 * tar.BLOCK
            if not sound or extent.offset != end or extent.size % tar.BLOCK:
                raise ValueError(f"gap, overlap or invalid value in the extent at byte {end}")
            end += extent.size
        if value["size"] != end + len(tar.END) or not HEX.fullmatch(value["sha256"]):
            raise ValueError(f"extents end at byte {end}, expected {value['size']!r:.20}")
        ids = np.array([extent.image_id for extent in rows], np.int64)
        ends = np.array([extent.offset + extent.size for extent in rows], np.int64)
        digests = np.frombuffer(bytes.fromhex("".join(e.sha256 for e in rows)), np.uint8).reshape(-1, 32)
        return ImageSidecar(value["size"], value["sha256"], ids, ends, digests)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptCache(f"{path}: invalid sidecar ({one_line(str(error))}); {remedy(path, DELETE)}") from error


def image_shard_done(path: Place, ids: Sequence[int]) -> bool:
    """Return whether a shard is complete and holds exactly these images. Only sizes and ids are compared."""
    try:
        sidecar = load_image_sidecar(path.with_suffix(".json"))
        return file_size(path) == sidecar.size and sidecar.ids.tolist() == list(ids)
    except StoreError:  # state unknown
        raise
    except (CacheError, FileNotFoundError):
        return False


def load_image_plan(root: Place, sha256: str | None = None) -> list[list[int]]:
    """Read the ids of the images in each shard. `sha256`: that of the manifest."""
    return read_fields(root / FOLDER / "plan.json", IMAGE_PLAN, sha256)["shards"]


def write_image_manifest(root: Place, plan: str) -> None:
    """Write the manifest, which makes the images complete. `plan`: digest of the cache's plan.json."""
    folder, shards = root / FOLDER, load_image_plan(root)
    paths = [folder / shard_name(n).replace(".tar", ".json") for n in range(len(shards))]
    sidecars, entries = call_each(root, load_image_sidecar, paths), call_each(root, checksum, paths)
    files = {"plan.json": checksum(folder / "plan.json")}
    for path, sidecar, entry in zip(paths, sidecars, entries):
        files[path.with_suffix(".tar").name] = {"bytes": sidecar.size, "sha256": sidecar.sha256}
        files[path.name] = entry
    size = sum(sidecar.size for sidecar in sidecars)
    write_json(folder / "manifest.json", {"plan": plan, "files": files, "images": sum(map(len, shards)), "bytes": size})


def load_image_manifest(root: Place) -> dict[str, Any] | None:
    """Read the manifest of the stored images; None where the cache has none. Raise CacheError or CorruptCache."""
    path = root / FOLDER / "manifest.json"
    return read_fields(path, IMAGE_MANIFEST) if path.exists() else None
