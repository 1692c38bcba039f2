"""The manifest of a pass. It is written last, after all shards are complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pipeline.budget import BUDGET
from pipeline.cache.canonical import write_json
from pipeline.cache.layout import pass_folder, shard_name
from pipeline.cache.sidecar import Sidecar, load_sidecar
from pipeline.cache.versions import FORMATS, VERSION
from pipeline.errors import CacheError, CorruptCache, StaleCache, StoreError
from pipeline.storage.files import checksum, file_size, unreadable
from pipeline.storage.place import AGAIN, REPAIR, Place, call_each, remedy


def shard_done(
    root: Place, cache_pass: int, number: int, plan: str, codec: str, samples: list[tuple[int, int]]
) -> bool:
    """Return whether a shard is complete, belongs to this plan and codec, and contains exactly these (image, view).

    Only sizes and identities are compared. The bytes were synced before the sidecar was written, and every read checks
    their checksum. Stage 1 computes a shard again if this returns False.
    """
    path = pass_folder(root, cache_pass) / shard_name(number)
    try:
        sidecar = load_sidecar(path.with_suffix(".json"))
        size = file_size(path)
    except StoreError:  # state unknown; do not compute a shard again because a store does not answer
        raise
    except (CacheError, FileNotFoundError):
        return False
    found = [(extent.image_id, extent.view) for extent in sidecar.samples]
    return (sidecar.plan, sidecar.codec) == (plan, codec) and size == sidecar.size and found == samples


def write_manifest(
    root: Place,
    cache_pass: int,
    plan: str,
    shards: int,
    raw_fp16: int,
    quarantine: list[list[Any]],
    environment: dict[str, str],
    version: int = VERSION,
) -> dict[str, Any]:
    """Write manifest.json from the sidecars of a pass, and return it.

    environment: versions of the libraries used. version: of the format.
    """
    folder = pass_folder(root, cache_pass)
    paths = [folder / shard_name(n).replace(".tar", ".json") for n in range(shards)]
    sidecars, entries = call_each(root, load_sidecar, paths), call_each(root, _checksum_small, paths)
    files = {name: _checksum_small(folder / name) for name in FORMATS[version].listed if (folder / name).exists()}
    for path, sidecar, entry in zip(paths, sidecars, entries):
        files[sidecar.shard] = {"bytes": sidecar.size, "sha256": sidecar.sha256}
        files[path.name] = entry
    manifest = {
        "pass": cache_pass,
        "plan": plan,
        "files": files,
        "samples": sum(len(s.samples) for s in sidecars),
        "bytes": sum(s.size for s in sidecars),
        "bytes_by_array": totals(s.bytes_by_array for s in sidecars),
        "raw_fp16_bytes": raw_fp16,
        "measured": _means(sidecars),
        "quarantine": quarantine,
        "environment": environment,
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def _checksum_small(path: Place) -> dict[str, Any]:
    """Return `bytes` and `sha256` of a file that was read before."""
    return checksum(path, most=BUDGET.plan_bytes)


def check_pass(root: Place, cache_pass: int, manifest: dict[str, Any], codec: str) -> list[CacheError]:
    """Read every byte of a pass, compare it with the manifest, and return an error for each bad file."""

    def check_sidecar(path: Place) -> CacheError | None:
        if load_sidecar(path).codec == codec:
            return None
        return StaleCache(f"{path}: encoded with another codec.json; run stage 1 again")

    return check_files(pass_folder(root, cache_pass), manifest, check_sidecar)


def check_files(
    folder: Place, manifest: dict[str, Any], check_sidecar: Callable[[Place], CacheError | None]
) -> list[CacheError]:
    """Read every byte of a pass, or of images/, and return an error for each file that differs from the manifest."""

    def check(name: str) -> CacheError | None:
        path = folder / name
        try:
            found = checksum(path, manifest["files"][name]["bytes"])
        except FileNotFoundError:
            return CorruptCache(f"{path}: listed in the manifest but missing; {remedy(path, AGAIN)}")
        except OSError as error:  # for example a bad sector: report the file, then check the others
            return unreadable(path, error)
        if found != manifest["files"][name]:
            return CorruptCache(f"{path}: size or sha256 differs from the manifest; {remedy(path, REPAIR)}")
        try:
            return check_sidecar(path) if name.startswith("shard-") and name.endswith(".json") else None
        except CorruptCache as error:  # a forged file: its sha256 matches the manifest, but it is not a sidecar
            return error

    return [fault for fault in call_each(folder, check, manifest["files"]) if fault is not None]


def find_lost_shard(folder: Place, manifest: dict[str, Any]) -> CacheError | None:
    """Return the error of the first file of a pass, or of images/, that is missing or has another size.

    None if there is none. Reads sizes only, so that a run does not meet a lost shard in the middle of an epoch.
    """

    def check(name: str) -> CacheError | None:
        try:
            size = file_size(folder / name)
        except FileNotFoundError:
            return CorruptCache(f"{folder / name}: listed in the manifest but missing; {remedy(folder / name, AGAIN)}")
        except OSError as error:
            return unreadable(folder / name, error)
        wanted = manifest["files"][name]["bytes"]
        if size == wanted:
            return None
        todo = remedy(folder / name, REPAIR)
        return CorruptCache(f"{folder / name}: expected {wanted} bytes by the manifest, found {size}; {todo}")

    return next(filter(None, call_each(folder, check, manifest["files"])), None)


def totals(rows: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the sum of each key, in the order in which the keys come."""
    found: dict[str, int] = {}
    for row in rows:
        for key, size in row.items():
            found[key] = found.get(key, 0) + size
    return found


def _means(sidecars: list[Sidecar]) -> dict[str, float]:
    """Return the means of the shards' measurements, weighted by samples."""
    filled = [s for s in sidecars if s.samples]  # a shard is empty if all its images are quarantined
    samples = sum(len(s.samples) for s in filled)
    keys = [key for key in (filled[0].measured if filled else ()) if all(key in s.measured for s in filled)]
    return {key: sum(s.measured[key] * len(s.samples) for s in filled) / samples for key in keys}
