"""Codecs by name, and the codec/ group of a cache."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.cache.files import sha256_file, sync, write_json
from pipeline.codec.base import Codec
from pipeline.codec.frs import Frs
from pipeline.codec.lossless import Lossless
from pipeline.errors import ConfigError, CorruptCache

CODECS: dict[str, type[Codec]] = {Lossless.name: Lossless, Frs.name: Frs}
DEFAULTS: dict[str, dict[str, Any]] = {
    Lossless.name: {"zstd": 1},
    # Blosc's 5 is zstd 9. Its 9 is zstd 22: 9% smaller, and stage 1 of the demo took 142 s instead of 52.
    Frs.name: {"zstd": 5, "feature_step": 0.003, "score_step": 0.003, "energy": 0.9999, "score_rank": 192},
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
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigError(f"cache.codec.{key}: expected a number above 0, found {value!r}")
        if isinstance(known[key], int) and not isinstance(value, int):
            raise ConfigError(f"cache.codec.{key}: expected a whole number, found {value!r}")
        if (key == "zstd" and value > 9) or (key == "energy" and value > 1):
            raise ConfigError(f"cache.codec.{key}: expected at most {9 if key == 'zstd' else 1}, found {value!r}")
    return {**known, **config}


def new_codec(settings: dict[str, Any]) -> Codec:
    """A codec that has yet to be calibrated."""
    return CODECS[settings["type"]](dict(settings), {})


def save_codec(codec: Codec, root: Path, measured: dict[str, Any]) -> None:
    """Write codec/ (a plain zarr v3 group) and then codec.json, which names its files and their sha256."""
    temporary, folder = root / "codec.tmp", root / "codec"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # without codec.json it was never finished
    group = zarr.create_group(temporary, zarr_format=3, attributes={"settings": codec.settings})
    for name, table in codec.tables.items():
        group.create_array(name, data=np.ascontiguousarray(table), chunks=table.shape, compressors=None)
    for path in temporary.rglob("*"):
        sync(path)
    temporary.rename(folder)
    sync(root)
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    files = {p.relative_to(folder).as_posix(): sha256_file(p) for p in paths}
    write_json(root / "codec.json", {"settings": codec.settings, "files": files, "measured": measured})


def load_codec(root: Path, manifest: dict[str, Any]) -> Codec:
    """The calibrated codec of a cache; `manifest` is its checked codec.json."""
    settings = manifest["settings"]
    try:
        group = zarr.open_group(root / "codec", mode="r")
        tables = {name: np.asarray(array[...]) for name, array in group.arrays()}
        return CODECS[settings["type"]](dict(settings), tables)
    except (KeyError, ValueError, FileNotFoundError) as error:
        raise CorruptCache(f"{root}/codec: cannot be opened ({error}); remove codec.json, run stage 1") from error
