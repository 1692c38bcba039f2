"""Find the format version and the codec of a folder, so that a cache is resumed, repaired and grown as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

from pipeline.cache.canonical import read_json
from pipeline.cache.layout import CODEC_COPY, list_passes, pass_folder
from pipeline.cache.reader import ShardReader
from pipeline.cache.sidecar import Sidecar, load_sidecar
from pipeline.cache.versions import FORMATS, VERSION
from pipeline.errors import CacheError, StoreError
from pipeline.storage.place import Place, key_of, storage_of


def find_version(root: Place) -> int:
    """Return the format version of the cache in a folder; that of new caches where there is none yet.

    If plan.json is missing or damaged, a sidecar decides, as for a repair. Raise StoreError.
    """
    try:
        if (root / "plan.json").exists():
            found = read_json(root / "plan.json").get("version")
            return found if type(found) is int and found in FORMATS else VERSION
    except StoreError:
        raise
    except CacheError:
        pass
    return next((sidecar.version for _, sidecar in _sidecars(root)), VERSION)


def find_codec_type(root: Place) -> str | None:
    """Return the type of the codec of the cache in a folder; None where there is no cache yet.

    If plan.json is missing or damaged, codec.json, its copy or a shard decides, as for a repair. Raise StoreError.
    """
    return next((kind for kind in _codec_types(root) if isinstance(kind, str)), None)


def _codec_types(root: Place) -> Iterator[Any]:
    """Yield what the files of a cache say about the type of its codec."""
    files: dict[str, tuple[str, ...]] = {"plan.json": ("recipe", "codec", "type")}
    files |= dict.fromkeys(("codec.json", f"{CODEC_COPY}/codec.json"), ("settings", "type"))
    for name, keys in files.items():
        try:
            if (root / name).exists():
                yield _value_at(read_json(root / name), keys)
        except StoreError:
            raise
        except CacheError:
            pass
    for path, sidecar in _sidecars(root):
        with suppress(CacheError), closing(ShardReader(path.with_suffix(".tar"), sidecar)) as reader:
            yield _value_at(reader.attributes, ("codec", "type"))


def _value_at(value: Any, keys: tuple[str, ...]) -> Any:
    """Return the value at a path of keys; None where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _sidecars(root: Place) -> Iterator[tuple[Place, Sidecar]]:
    """Yield the sidecars that can be read, and their paths."""
    for number, _ in list_passes(root) or []:
        folder = pass_folder(root, number)
        for name in storage_of(folder).list_dir(key_of(folder)) or []:
            if name.startswith("shard-") and name.endswith(".json"):
                with suppress(CacheError):
                    yield folder / name, load_sidecar(folder / name)
