"""Write the codec/ group of a cache, and read and check it."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.array_spec import ArrayConfigParams

from pipeline.budget import BUDGET, parse_json
from pipeline.cache.cache import Cache
from pipeline.cache.canonical import write_json
from pipeline.cache.layout import CODEC_COPY
from pipeline.cache.zarr_store import group_of
from pipeline.codecs.base import Codec
from pipeline.codecs.registry import CODECS
from pipeline.errors import ConfigError, CorruptCache
from pipeline.storage.files import atomic_folder, read_small
from pipeline.storage.local import sha256_file
from pipeline.storage.place import Place

# What zarr, numpy and a codec raise for values that they do not expect.
INVALID = (ConfigError, LookupError, ValueError, TypeError, AttributeError, OSError, RecursionError, ArithmeticError)
TABLES = ("float32", "float16", "int16")  # data types of the tables


def save_codec(codec: Codec, root: Place, measured: dict[str, Any]) -> None:
    """Write codec/, a plain zarr v3 group, and then codec.json, which lists its files and their sha256.

    A trained codec is written twice, because a lost one cannot be calibrated again.
    """
    with atomic_folder(root / "codec") as folder:  # without a codec.json, this folder is incomplete
        files = _write_group(codec, folder)
    content = {"settings": codec.settings, "files": files, "measured": measured}
    if codec.trained:
        with atomic_folder(root / CODEC_COPY) as folder:
            (folder / "codec").mkdir()
            _write_group(codec, folder / "codec")
            write_json(folder / "codec.json", content)
    write_json(root / "codec.json", content)


def _write_group(codec: Codec, folder: Path) -> dict[str, str]:
    """Write the group into an empty folder. Return the sha256 of its files."""
    group = zarr.create_group(folder, zarr_format=3, attributes={"settings": codec.settings})
    for name, table in codec.tables.items():
        data = np.ascontiguousarray(table)
        # zarr would not write a table of zeros.
        config: ArrayConfigParams = {"write_empty_chunks": True}
        group.create_array(name, data=data, chunks=table.shape, compressors=None, config=config)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def _require_plain(files: dict[str, bytes]) -> None:
    """Raise ValueError where a table is not one uncompressed chunk of exactly the declared size.

    Call this before zarr reads the files. zarr replaces missing chunks, and runs any codec that a zarr.json names.
    """
    for name in {name.split("/")[0] for name in files if "/" in name}:
        meta = parse_json(files[f"{name}/zarr.json"])
        shape, (codec,) = meta["shape"], meta["codecs"]
        chunks = [data for key, data in files.items() if key.startswith(f"{name}/c")]
        declared = prod(shape) * np.dtype(meta["data_type"]).itemsize
        plain = codec["name"] == "bytes" and meta["data_type"] in TABLES and not meta.get("storage_transformers")
        one_chunk = meta["chunk_grid"]["configuration"]["chunk_shape"] == shape and len(chunks) == 1
        if not (plain and one_chunk and min(shape) > 0 and len(chunks[0]) == declared):
            raise ValueError(f"{name}: expected one uncompressed chunk of {declared} bytes")


def open_codec(cache: Cache) -> Codec:
    """Open the codec of a cache. Raise CorruptCache or StoreError."""
    return load_codec(cache.root, cache.codec_manifest())


def load_codec(root: Place, manifest: dict[str, Any]) -> Codec:
    """Read the codec of a cache from its checked codec.json, `manifest`. Raise CorruptCache."""
    settings = manifest["settings"]
    files, left = dict[str, bytes](), BUDGET.table_bytes
    for name, sha256 in manifest["files"].items():
        files[name] = read_small(root / "codec" / name, sha256, left)
        left -= len(files[name])
    try:
        _require_plain(files)
        group = group_of(files)
        tables = {name: np.asarray(array[...]) for name, array in group.arrays()}
        return CODECS[settings["type"]].from_json(settings, tables)
    except INVALID as error:
        raise CorruptCache(
            f"{root}/codec: cannot be opened ({error!s:.200}); delete the cache's codec.json and run stage 1 again"
        ) from error
