"""The codec/ group of a cache: write it once, read it back and check it."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.cache.cache import Cache
from pipeline.cache.canonical import write_json
from pipeline.cache.zarr_store import group_of
from pipeline.codecs.base import Codec
from pipeline.codecs.registry import CODECS
from pipeline.errors import ConfigError, CorruptCache
from pipeline.storage.files import atomic_folder, read_small
from pipeline.storage.local import sha256_file
from pipeline.storage.place import Place

TABLES = ("float32", "int16")  # types of their numbers


def save_codec(codec: Codec, root: Place, measured: dict[str, Any]) -> None:
    """Write codec/ (a plain zarr v3 group) and then codec.json, which names its files and their sha256."""
    with atomic_folder(root / "codec") as folder:  # without codec.json, what is there was never finished
        files = _write_group(codec, folder)
    write_json(root / "codec.json", {"settings": codec.settings, "files": files, "measured": measured})


def _write_group(codec: Codec, folder: Path) -> dict[str, str]:
    """The group in an empty folder. Returns the sha256 of its files."""
    group = zarr.create_group(folder, zarr_format=3, attributes={"settings": codec.settings})
    for name, table in codec.tables.items():
        group.create_array(name, data=np.ascontiguousarray(table), chunks=table.shape, compressors=None)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def _require_plain(files: dict[str, bytes]) -> None:
    """Each table is one plain chunk of just the bytes that it declares. Raises ValueError before any is read.

    zarr fills in what is missing, and runs whatever codec a zarr.json names.
    """
    for name in {name.split("/")[0] for name in files if "/" in name}:
        meta = json.loads(files[f"{name}/zarr.json"])
        shape, (codec,) = meta["shape"], meta["codecs"]
        chunks = [data for key, data in files.items() if key.startswith(f"{name}/c")]
        declared = prod(shape) * np.dtype(meta["data_type"]).itemsize
        plain = codec["name"] == "bytes" and meta["data_type"] in TABLES and not meta.get("storage_transformers")
        whole = meta["chunk_grid"]["configuration"]["chunk_shape"] == shape and len(chunks) == 1
        if not (plain and whole and min(shape) > 0 and len(chunks[0]) == declared):
            raise ValueError(f"{name}: not one plain chunk of {declared} bytes")


def open_codec(cache: Cache) -> Codec:
    """Open the codec of a cache. Raises CorruptCache or StoreError."""
    return load_codec(cache.root, cache.codec_manifest())


def load_codec(root: Place, manifest: dict[str, Any]) -> Codec:
    """Read the codec in the folder `root`; `manifest` is its checked codec.json. Raises CorruptCache."""
    settings = manifest["settings"]
    files = {name: read_small(root / "codec" / name, sha256) for name, sha256 in manifest["files"].items()}
    try:
        _require_plain(files)
        group = group_of(files)
        tables = {name: np.asarray(array[...]) for name, array in group.arrays()}
        return CODECS[settings["type"]].from_json(settings, tables)
    except (ConfigError, KeyError, ValueError, TypeError, AttributeError, FileNotFoundError, RecursionError) as error:
        raise CorruptCache(f"{root}/codec: cannot be opened ({error}); remove codec.json, run stage 1") from error
