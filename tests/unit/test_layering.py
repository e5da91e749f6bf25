"""A module imports only from its own layer and from lower ones, and no import cycles exist."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.layers import LAZY, imports_of, level_of
from support.package import PACKAGE, modules

# An interpreter that may not have faasrt imports this folder as the package `launcher`.
LAUNCHER = PACKAGE / "local" / "jail" / "launcher"


@pytest.mark.parametrize("module", modules())
def test_no_imports_from_higher_layers(module: str) -> None:
    """A module imports only from its own layer and from lower ones."""
    for imported in imports_of(modules()[module], modules()):
        if (module, imported) not in LAZY:
            assert level_of(imported) <= level_of(module), f"{module} imports {imported}"


def test_the_client_does_not_import_the_server() -> None:
    """Only `faasrt.client.local_faas` does, on first use."""
    for module, path in modules().items():
        if module.startswith(("faasrt.client.", "faasrt.transport.")) and module != "faasrt.client.local_faas":
            assert not [name for name in imports_of(path, modules()) if name.startswith("faasrt.local")], module


@pytest.mark.parametrize("path", sorted(LAUNCHER.glob("*.py")), ids=lambda path: path.stem)
def test_the_modules_of_the_launcher_import_only_each_other(path: Path) -> None:
    """Other imports of these modules are of the standard library."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            assert all((LAUNCHER / f"{name}.py").exists() for name in names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_no_import_cycles() -> None:
    """Modules of the same package may import each other in one direction only."""
    known = modules()
    graph = {module: imports_of(path, known) - {"faasrt", module} for module, path in known.items()}
    graph["faasrt"] = set()
    list(TopologicalSorter(graph).static_order())
