"""A module imports only from lower layers or from its own package, and no import cycles exist."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.package import modules

# The layer of each module. The first matching prefix decides.
LAYERS = [
    ("faasrt.docs", 10),
    ("faasrt.examples", 10),
    ("faasrt.cli", 9),
    ("faasrt.inspect_ai", 9.8),
    ("faasrt.rewards", 9.6),
    ("faasrt._shared_manager", 9.4),
    ("faasrt.ray", 9),
    ("faasrt.sync", 9),
    ("faasrt.web", 9),
    ("faasrt.testing.pytest_plugin", 9),
    ("faasrt.client", 8),
    ("faasrt.testing", 7),
    ("faasrt.transport", 7),
    ("faasrt.local.server", 7),
    ("faasrt.local.engine_choice", 6.9),
    ("faasrt.local.engine_tasks", 6.9),
    ("faasrt.local.http", 6.8),
    ("faasrt.local.engines.deno", 6.7),
    ("faasrt.local.engines.native", 6.7),
    ("faasrt.local.engines.toolchain", 6.7),
    ("faasrt.local.engines.wasm", 6.7),
    ("faasrt.local.engines", 6.6),
    ("faasrt.local.jail", 6.5),
    ("faasrt.local", 6.4),
    ("faasrt.protocol", 6),
    ("faasrt.telemetry", 5),
    ("faasrt.tasks", 5),
    ("faasrt.judging", 4.5),
    ("faasrt._run_options", 4.2),
    ("faasrt.config", 4),
    ("faasrt.results", 4),
    ("faasrt.discovery", 3.5),
    ("faasrt._checks", 3),
    ("faasrt.inputs", 3),
    ("faasrt._assert_programs", 2),
    ("faasrt._endpoint_urls", 2),
    ("faasrt.languages", 2),
    ("faasrt._exact_values", 2),
    ("faasrt._strict_json", 1.5),
    ("faasrt.errors", 1),
    ("faasrt._version", 1),
    ("faasrt", 10),
]
# Imports that are executed on first use only, so they may go to any layer.
LAZY = {("faasrt.client.embedded", "faasrt.local.server"), ("faasrt.local", "faasrt.local.server")}
# The launcher of a jail imports these modules as the package `jail`, in an interpreter that may not have faasrt.
LAUNCHER = (
    *("canary", "confinement", "landlock", "launcher", "memory", "namespaces", "program"),
    *("seccomp", "slot", "stack", "syscalls", "template", "watch"),
)


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports, except those imported only for type checkers."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= (below & set(known)) or {node.module}
    return imported


def layer_of(module: str) -> tuple[str, float]:
    """Return the prefix of a module in LAYERS, and its level."""
    return next(layer for layer in LAYERS if module == layer[0] or module.startswith(layer[0] + "."))


@pytest.mark.parametrize("module", modules())
def test_imports_only_from_lower_layers(module: str) -> None:
    """A module imports only from lower layers, or from its own layer's package."""
    package, level = layer_of(module)
    for imported in imports_of(modules()[module], modules()):
        if imported == "faasrt" or (module, imported) in LAZY:
            continue  # the package itself defines the version, and imports its public names lazily
        imported_package, imported_level = layer_of(imported)
        assert imported_package == package or imported_level < level, f"{module} imports {imported}"


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_modules_of_the_launcher_import_only_each_other(name: str) -> None:
    """Their other imports are of the standard library."""
    for node in ast.walk(ast.parse(modules()[f"faasrt.local.jail.{name}"].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            assert set(names) <= set(LAUNCHER)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_no_import_cycles() -> None:
    """Modules of the same package may import each other in one direction only."""
    known = modules()
    graph = {module: imports_of(path, known) - {"faasrt", module} for module, path in known.items()}
    graph["faasrt"] = set()
    list(TopologicalSorter(graph).static_order())
