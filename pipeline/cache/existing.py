"""Find the format version of a folder, so that a cache is resumed, repaired and grown in its own version."""

from __future__ import annotations

from contextlib import suppress

from pipeline.cache.canonical import read_json
from pipeline.cache.layout import list_passes, pass_folder
from pipeline.cache.sidecar import load_sidecar
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
    for number, _ in list_passes(root) or []:
        folder = pass_folder(root, number)
        for name in storage_of(folder).list_dir(key_of(folder)) or []:
            if name.startswith("shard-") and name.endswith(".json"):
                with suppress(CacheError):
                    return load_sidecar(folder / name).version
    return VERSION
