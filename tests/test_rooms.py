"""The rules of ARCHITECTURE.md about the shape of the package, held by the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "loadgen"
# From the top floor down. A module imports from its own room and from those below, never from one above.
FLOORS = [
    "cli",
    "sweeps",
    "report",
    "comparison",
    "microbench",
    "engines",
    "client",
    "analysis",
    "workloads",
    "run_folders",
    "records",
    "gpus",
    "loads",
    "processes",
    "environment",
    "clock",
    "units",
    "errors",
]
MOST_NAMES = 20  # at the top level, with __init__ and __main__
MOST_FUNCTION_LINES = 80
MOST_FILE_LINES = 500
SOURCES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    return module.removeprefix("loadgen").lstrip(".").partition(".")[0]


def imports_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and module of each import of loadgen's own, lazy ones and those for types alone too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name.startswith("loadgen."))
        elif isinstance(node, ast.ImportFrom) and node.module == "loadgen":
            yield from ((node.lineno, f"loadgen.{name.name}") for name in node.names if name.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loadgen."):
            yield node.lineno, str(node.module)


def module_of(path: Path) -> str:
    return ".".join(["loadgen", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def test_every_name_at_the_top_has_a_floor() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__", "__main__"} == set(FLOORS)
    assert len(names) <= MOST_NAMES


def test_rooms_import_only_downward() -> None:
    found = []
    checked = 0
    for path in SOURCES:
        own = room_of(module_of(path))
        if own in ("", "__main__"):
            continue
        for line, module in imports_of(ast.parse(path.read_text())):
            checked += 1
            if FLOORS.index(room_of(module)) < FLOORS.index(own):
                found.append(f"{path.relative_to(PACKAGE)}:{line} imports {module}")
    assert checked > 300
    assert not found, "\n".join(found)


def test_no_two_modules_import_each_other() -> None:
    known = {module_of(path) for path in SOURCES}
    needs: dict[str, set[str]] = {}
    for path in SOURCES:
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "loadgen":
                module = str(node.module)
                found |= {whole for name in node.names if (whole := f"{module}.{name.name}") in known} or {module}
        needs[module_of(path)] = found - {"loadgen"}
    circles = []
    while free := [module for module, wants in needs.items() if not wants & needs.keys()]:
        for module in free:
            del needs[module]
    circles = sorted(needs)
    assert not circles, f"in a circle, or above one: {', '.join(circles)}"


def test_the_client_knows_no_engine() -> None:
    """``--url`` works as an engine that loadgen launched."""
    for path in (PACKAGE / "client").glob("*.py"):
        modules = [module for _, module in imports_of(ast.parse(path.read_text()))]
        assert not [module for module in modules if room_of(module) == "engines"], path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MOST_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_FUNCTION_LINES, f"{node.name} at line {node.lineno} has {lines} lines"
