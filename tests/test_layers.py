"""Imports go down the list of layers and never in a circle; what a cache needs to be read never needs mmdet."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"mmdet", "mmcv", "mmengine", "cv2", "webdataset"}
# Modules, or all of a package, that read a cache; the first ones need no torch either.
WITHOUT_TORCH = [
    "errors",
    "progress",
    "records",
    "storage",
    "cache",
    "codecs.summary",
    "codecs.settings",
    "codecs.frs.settings",
    "integrity.verify",
    "cli",
    "__main__",
    "fields",
]
WITHOUT_MMDET = [
    *WITHOUT_TORCH,
    "codecs",
    "losses",
    "precision",
    "calibration.gradient",
    "calibration.adapters",
    "data.coco",
    "data.replay",
    "data.schedule",
    "integrity.decode_all",
    "tools.export",
]
STARTS_MMDET = ["cli.command", "cli.stage2"]  # inside functions, for their config and launcher


def layers() -> list[str]:
    """List the packages in the diagram of docs/design.md, lowest first: a line that is not indented starts with one."""
    diagram = re.search(r"^```text\n(.*?)^```", (ROOT / "docs" / "design.md").read_text(), re.M | re.S)
    assert diagram, "docs/design.md: expected the diagram of packages in a ```text block"
    return [line.split()[0] for line in reversed(diagram[1].splitlines()) if line[:1].strip()]


LAYER = {name: number for number, name in enumerate(layers())}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name without `pipeline.`; packages by their own."""
    found = {}
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        parts = path.relative_to(ROOT / "pipeline").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found[""]
    return found


def outer(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: none of functions, none for type checkers alone."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from outer(ast.iter_child_nodes(node))


@cache
def imported(name: str, at_start: bool = False) -> set[str]:
    """What a module imports, anywhere in it or `at_start` alone: ours by module without `pipeline.`, others whole."""
    tree = ast.parse(modules()[name].read_text())
    names = names_imported(outer([tree]) if at_start else ast.walk(tree))
    return {ours(each) if each.split(".")[0] == "pipeline" else each for each in names}


def names_imported(nodes: Iterable[ast.AST]) -> list[str]:
    """The dotted names of the import statements among `nodes`."""
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def ours(target: str) -> str:
    """The module that a dotted name of ours lies in."""
    parts = target.split(".")[1:]
    while parts and ".".join(parts) not in modules():
        parts.pop()
    return ".".join(parts)


def top(name: str) -> str:
    return name.partition(".")[0]


def edges(at_start: bool = False) -> set[tuple[str, str]]:
    return {(name, target) for name in modules() for target in imported(name, at_start) if target in modules()}


def listed(names: list[str]) -> list[str]:
    return [name for name in modules() if any(f"{name}.".startswith(f"{each}.") for each in names)]


def needed(name: str) -> set[str]:
    """Every module of ours that importing one imports, and the packages around them."""
    seen: set[str] = set()
    rest = [name]
    while rest:
        one = rest.pop()
        if one not in seen:
            seen.add(one)
            rest += [target for target in imported(one, at_start=True) if target in modules()]
            rest += [one.rpartition(".")[0]] if "." in one else []
    return seen


def test_every_module_has_a_layer() -> None:
    names = layers()
    assert sorted(names) == sorted({top(name) for name in modules()})


def test_imports_go_down() -> None:
    assert not {(a, b) for a, b in edges() if LAYER[top(b)] > LAYER[top(a)]}


def test_no_imports_in_a_circle() -> None:
    """Files that reach each other; also through functions and type checking."""
    reached: dict[str, set[str]] = {name: {b for a, b in edges() if a == name} for name in modules()}
    grew = True
    while grew:
        grew = False
        for name, targets in reached.items():
            more = set().union(*(reached[target] for target in targets)) - targets
            reached[name] = targets | more
            grew |= bool(more)
    assert not {frozenset({a, b}) for a in reached for b in reached[a] if a < b and a in reached[b]}


def test_packages_hold_no_logic() -> None:
    """They hold a docstring and re-exports; a function `__getattr__` re-exports what is imported only when used."""
    for name, path in modules().items():
        if path.name == "__init__.py":
            docstring, *rest = ast.parse(path.read_text()).body
            assert isinstance(docstring, ast.Expr), name
            others = [node for node in rest if not isinstance(node, ast.ImportFrom)]
            assert all("__all__" in ast.unparse(n) or getattr(n, "name", "") == "__getattr__" for n in others), name


@pytest.mark.parametrize(("names", "heavy"), [(WITHOUT_MMDET, HEAVY), (WITHOUT_TORCH, HEAVY | {"torch"})])
def test_a_cache_is_read_without(names: list[str], heavy: set[str]) -> None:
    for name in listed(names):
        for each in needed(name):
            found = {top(target) for target in imported(each, at_start=True)} & heavy
            assert not found, f"{name} imports {each}, which imports {found}"
            assert top(each) not in ("mmdet_compat", "mm"), f"{name} imports {each}"


def test_what_reads_a_cache_never_asks_for_mmdet() -> None:
    """Not inside functions either."""
    for name in set(listed(WITHOUT_MMDET)) - set(STARTS_MMDET) - set(listed(["cli"])) | {"cli.info", "cli.export"}:
        found = imported(name)
        assert not {top(target) for target in found} & HEAVY, name
        assert not {top(target) for target in found} & {"mmdet_compat", "mm"}, name


def test_each_test_file_runs_alone() -> None:
    """mmdet's parts need the replacement of mmcv's ops, so a test imports them after it, in functions or not at all."""
    for path in (ROOT / "tests").rglob("*.py"):
        names = names_imported(outer(ast.parse(path.read_text()).body))
        parts = [n for n, name in enumerate(names) if name.startswith(("mmdet.", "mmcv."))]
        assert not parts or any(name.startswith("pipeline.mm") for name in names[: parts[0]]), path
