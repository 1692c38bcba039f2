"""Change a value in a file of a cache, and make every seal, digest and checksum above it right again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.cache import tar
from pipeline.cache.sidecar import extent_type

FOLDERS = ("codec", "codec-copy/codec")


def text_of(value: Any) -> bytes:
    """Encode as the format does, and also NaN, infinity and lone surrogates, which it does not allow."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="surrogatepass") + b"\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(path: Path) -> Any:
    """Read a JSON file, without its seal if it has one."""
    value = json.loads(path.read_bytes())
    if isinstance(value, dict):
        value.pop("seal", None)
    return value


def write(path: Path, value: Any) -> None:
    """Write a JSON file with a right seal, if it is an object."""
    sealed = {**value, "seal": sha256(text_of(value))} if isinstance(value, dict) else value
    path.write_bytes(text_of(sealed))


def names(root: Path) -> list[str]:
    """Return the names of a cache's JSON files; those inside of a shard's head follow its name after a colon."""
    found = [path.relative_to(root).as_posix() for path in root.rglob("*.json")]
    for shard in root.rglob("shard-*.tar"):
        name = shard.relative_to(root).as_posix()
        found += [f"{name}:{member}" for member in _head(shard) if member.endswith(".json")]
    return sorted(found)


def load(root: Path, name: str) -> Any:
    """Return the JSON value of one of `names`."""
    file, _, member = name.partition(":")
    return json.loads(_head(root / file)[member]) if member else read(root / file)


def _head(shard: Path) -> dict[str, bytes]:
    head = read(shard.with_suffix(".json"))["head"]
    return {name: bytes(data) for name, data in tar.parse(shard.read_bytes()[: head["size"]])}


def change(root: Path, name: str, value: Any) -> None:
    """Replace the JSON value of one of `names`, and make what depends on it right."""
    file, _, member = name.partition(":")
    old = sha256(text_of(read(root / "plan.json"))), sha256(text_of(read(root / "codec.json")))
    if member:
        rewrite_head(root / file, lambda files: {**files, member: text_of(value)})
    elif name.startswith(tuple(f"{folder}/" for folder in FOLDERS)) or name == "summary.json":
        (root / name).write_bytes(text_of(value))
    else:
        write(root / name, value)
        if name == "codec.json" and (root / "codec-copy").exists():
            write(root / "codec-copy" / name, value)
    _renew_tables(root)
    plan, codec = read(root / "plan.json"), read(root / "codec.json")
    new = sha256(text_of(plan)), sha256(text_of(codec))
    if new != old:
        _renew_shards(root, plan, codec, new)
    renew_manifests(root, name)


def _renew_tables(root: Path) -> None:
    """Make the digests of the tables in codec.json right, in both copies."""
    for folder in FOLDERS:
        beside = (root / folder).with_suffix(".json")
        listed = read(beside) if beside.exists() else None
        if isinstance(listed, dict) and isinstance(listed.get("files"), dict):
            found = {n: root / folder / n for n in listed["files"]}
            digests = {n: sha256(path.read_bytes()) for n, path in found.items() if len(n) < 200 and path.is_file()}
            if listed["files"] | digests != listed["files"]:
                write(beside, {**listed, "files": listed["files"] | digests})


def _renew_shards(root: Path, plan: Any, codec: Any, digests: tuple[str, str]) -> None:
    """Write the digests of plan.json and codec.json, and the settings of the codec, into every shard and sidecar."""

    def renewed(files: dict[str, bytes]) -> dict[str, bytes]:
        head = json.loads(files["zarr.json"])
        settings = codec.get("settings") if isinstance(codec, dict) else None
        recipe = plan.get("recipe_digest") if isinstance(plan, dict) else None
        head["attributes"] |= {"plan": digests[0], "codec": settings, "recipe": recipe}
        return {**files, "zarr.json": text_of(head)}

    for shard in sorted(root.rglob("shard-*.tar")):
        beside = shard.with_suffix(".json")
        write(beside, read(beside) | dict(zip(("plan", "codec"), digests)))
        rewrite_head(shard, renewed)


def rewrite_head(shard: Path, renew: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Replace the files in a shard's head, and make its sidecar right."""
    sidecar, raw = read(shard.with_suffix(".json")), shard.read_bytes()
    files = renew(_head(shard))
    head = b"".join(tar.member(name, data) for name, data in files.items())
    write_shard(shard, sidecar, head + raw[sidecar["head"]["size"] :], len(head) - sidecar["head"]["size"])


def write_shard(shard: Path, sidecar: dict[str, Any], raw: bytes, moved: int = 0) -> None:
    """Write a shard's bytes, and its sidecar with right checksums. `moved`: by how much its samples moved."""
    extent: Any = extent_type(sidecar["sample_columns"])
    size = sidecar["head"]["size"] + moved
    sidecar["head"] = vars(extent.of(0, raw[:size]))
    for n, (at, length, _, image, view) in enumerate(sidecar["samples"]):
        part = raw[at + moved :][:length]
        sidecar["samples"][n] = [*vars(extent.of(at + moved, part, image, view)).values()]
    at = sidecar["tail"]["offset"] + moved
    sidecar |= {"tail": vars(extent.of(at, raw[at:])), "size": len(raw), "sha256": sha256(raw)}
    shard.write_bytes(raw)
    write(shard.with_suffix(".json"), sidecar)


def renew_manifests(root: Path, changed: str = "") -> None:
    """Make the digests of the files in every manifest right, except in one that was changed itself."""
    plan = sha256(text_of(read(root / "plan.json")))
    for path in sorted(root.glob("pass-*/manifest.json")):
        manifest = read(path)
        if path.relative_to(root).as_posix() == changed or not isinstance(manifest, dict):
            continue
        for name in manifest["files"]:
            raw = (path.parent / name).read_bytes()
            manifest["files"][name] = {"bytes": len(raw), "sha256": sha256(raw)}
        write(path, manifest | {"plan": plan})
