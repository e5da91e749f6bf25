"""A module imports only from lower layers or from its own package, and no import cycles exist."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.package import modules

# The layer of each module. The first matching prefix decides.
LAYERS = [
    ("faasrt.docs", 10),
    ("faasrt.examples", 10),
    ("faasrt.cli", 9),
    ("faasrt.ray", 9),
    ("faasrt.sync", 9),
    ("faasrt.testing.pytest_plugin", 9),
    ("faasrt.client", 8),
    ("faasrt.testing", 7),
    ("faasrt.transport", 7),
    ("faasrt.local", 7),
    ("faasrt.protocol", 6),
    ("faasrt.telemetry", 5),
    ("faasrt.tasks", 5),
    ("faasrt.judging", 4.5),
    ("faasrt.config", 4),
    ("faasrt.results", 4),
    ("faasrt.discovery", 3.5),
    ("faasrt._checks", 3),
    ("faasrt.inputs", 3),
    ("faasrt._endpoint_urls", 2),
    ("faasrt.languages", 2),
    ("faasrt.errors", 1),
    ("faasrt.strict_json", 1),
    ("faasrt._version", 1),
    ("faasrt", 10),
]
# Imports that are executed on first use only, so they may go to any layer.
LAZY = {("faasrt.client.embedded", "faasrt.local.server")}


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports, except those imported only for type checkers."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (below & set(known)) or {node.module}
    return found


def layer_of(module: str) -> float:
    return next(level for prefix, level in LAYERS if module == prefix or module.startswith(prefix + "."))


@pytest.mark.parametrize("module", modules())
def test_imports_only_from_lower_layers(module: str) -> None:
    """A module imports only from lower layers, or from its own package."""
    for imported in imports_of(modules()[module], modules()):
        if imported == "faasrt" or (module, imported) in LAZY:
            continue  # the package itself defines the version, and imports its public names lazily
        same_package = module.split(".")[1:2] == imported.split(".")[1:2]
        assert same_package or layer_of(imported) < layer_of(module), f"{module} imports {imported}"


def test_no_import_cycles() -> None:
    """Modules of the same package may import each other in one direction only."""
    known = modules()
    graph = {module: imports_of(path, known) - {"faasrt", module} for module, path in known.items()}
    graph["faasrt"] = set()
    list(TopologicalSorter(graph).static_order())
