"""Imports go downward only: what a cache needs to be read must never need mmdet."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Lowest floor first; a module may import from its own floor's package and from floors below.
FLOORS = [
    ["errors", "records", "mmcv_ops", "stopping", "progress"],
    ["cache"],
    ["codec", "frs", "pkd", "cwd", "losses", "gradient", "replay", "mm"],
    ["config", "data", "views"],
    ["planning"],
    ["teacher", "stream"],
    ["recipe"],
    ["report", "deep"],
    ["caching", "distill", "export", "verify"],
    ["reencode"],
    ["forecast", "page"],
    ["terminal"],
    ["cli"],
    ["verbs"],
    ["__main__"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
WITHOUT_MMDET = [
    "errors",
    "records",
    "progress",
    "cache",
    "codec",
    "frs",
    "pkd",
    "cwd",
    "losses",
    "gradient",
    "replay",
    "report",
    "stopping",
    "verify",
    "deep",
    "export",
    "__main__",
]


def modules() -> dict[Path, str]:
    """Every file of the package, and the floor's name it belongs to."""
    files = sorted((ROOT / "pipeline").rglob("*.py"))
    return {f: f.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py") for f in files if f.name != "__init__.py"
            or f.parent.name != "pipeline"}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_a_floor() -> None:
    assert set(modules().values()) == set(FLOOR)


def test_imports_go_downward() -> None:
    upward = []
    for path, name in modules().items():
        for target in imported(path):
            parts = target.split(".")
            if parts[0] != "pipeline" or len(parts) < 2 or parts[1] == name or parts[1] not in FLOOR:
                continue
            if FLOOR[parts[1]] > FLOOR[name] or (FLOOR[parts[1]] == FLOOR[name] and name == "config"):
                upward.append(f"{path.name} ({name}) imports {target}")
    assert not upward


def test_a_cache_is_read_without_mmdet() -> None:
    for path, name in modules().items():
        if name in WITHOUT_MMDET:
            found = {target.split(".")[0] for target in imported(path)} & {"mmdet", "mmcv", "mmengine", "cv2"}
            assert not found, f"{path} imports {found}"
            assert not any(target.startswith("pipeline.mm.") for target in imported(path))
