"""Codecs by name, and the codec/ group of a cache."""

from __future__ import annotations

import json
import shutil
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.cache.files import atomic_file, naming, read_small, sha256_file, sync, write_json
from pipeline.cache.place import Place
from pipeline.cache.remote import RemotePath
from pipeline.cache.store import group_of
from pipeline.codec.base import Codec
from pipeline.codec.fit import PROFILES
from pipeline.codec.frs import Frs
from pipeline.codec.lossless import Lossless
from pipeline.codec.quality import QUALITIES
from pipeline.errors import ConfigError, CorruptCache

TABLES = ("float32", "int16")  # types of their numbers
CODECS: dict[str, type[Codec]] = {Lossless.name: Lossless, Frs.name: Frs}
DEFAULTS: dict[str, dict[str, Any]] = {
    Lossless.name: {"zstd": 1, "scores": True},
    # Blosc's 8 is zstd 15: 8% smaller than 5 (zstd 9), and tokens are so few that it costs 20 ms a view at most.
    Frs.name: {"zstd": 8, "scores": True, "quality": "balanced", "profile": "frs"},
}


def codec_settings(config: dict[str, Any]) -> dict[str, Any]:
    """cache.codec of a config with defaults filled in. Raises ConfigError on unknown names, keys or values."""
    name = config.get("type")
    if name not in CODECS:
        raise ConfigError(f"cache.codec.type: expected one of {sorted(CODECS)}, found {name!r}")
    known = DEFAULTS[name]
    for key, value in config.items():
        if key == "type":
            continue
        if key not in known:
            raise ConfigError(f"cache.codec.{key}: unknown key; the {name} codec knows {sorted(known)}")
        if key == "zstd" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 9):
            raise ConfigError(f"cache.codec.zstd: expected a whole number from 1 to 9, found {value!r}")
        if key == "scores" and not isinstance(value, bool):
            raise ConfigError(
                f"cache.codec.scores: expected True or False (leave out the class scores), found {value!r}"
            )
        if key == "profile" and value not in PROFILES:
            raise ConfigError(f"cache.codec.profile: expected one of {sorted(PROFILES)}, found {value!r}")
        if key == "quality" and not _named(value) and not _fraction(value):
            raise ConfigError(
                "cache.codec.quality: expected the gradient error allowed to each loss, between 0.005 and 0.5, or one "
                f"of {QUALITIES}, found {value!r}"
            )
    settings = {**known, **config}
    if settings["scores"]:
        del settings["scores"]  # as in the recipes of caches from before there was a choice
    return settings


def _named(value: Any) -> bool:
    return isinstance(value, str) and value in QUALITIES


def _fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.005 <= value <= 0.5


def new_codec(settings: dict[str, Any]) -> Codec:
    """A codec that has yet to be calibrated."""
    return CODECS[settings["type"]](dict(settings), {})


def save_codec(codec: Codec, root: Place, measured: dict[str, Any]) -> None:
    """Write codec/ (a plain zarr v3 group) and then codec.json, which names its files and their sha256."""
    if isinstance(root, RemotePath):
        with tempfile.TemporaryDirectory() as folder:
            files = _write_group(codec, Path(folder) / "codec")
            for name in files:
                with atomic_file(root / "codec" / name) as file:
                    file.write((Path(folder) / "codec" / name).read_bytes())
    else:
        temporary, place = root / "codec.tmp", root / "codec"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)  # without codec.json it was never finished
        with naming(place):
            files = _write_group(codec, temporary)
            for path in temporary.rglob("*"):
                sync(path)
            temporary.rename(place)
            sync(root)
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


def load_codec(root: Place, manifest: dict[str, Any]) -> Codec:
    """The calibrated codec of a cache; `manifest` is its checked codec.json."""
    settings = manifest["settings"]
    files = {name: read_small(root / "codec" / name, sha256) for name, sha256 in manifest["files"].items()}
    try:
        _require_plain(files)
        group = group_of(files)
        tables = {name: np.asarray(array[...]) for name, array in group.arrays()}
        codec = CODECS[settings["type"]](dict(settings), tables)
        codec.validate()
        return codec
    except (KeyError, ValueError, TypeError, AttributeError, FileNotFoundError, RecursionError) as error:
        raise CorruptCache(f"{root}/codec: cannot be opened ({error}); remove codec.json, run stage 1") from error
