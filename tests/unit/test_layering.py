"""A module imports only from its own layer and from lower ones, and no import cycles exist."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.package import modules

# The modules and packages of each layer, from the lowest. The longest prefix of a module decides. The lowest layer has
# all modules of the package that are not named: records, settings, and what they need.
LAYERS = [
    ["faasrt"],
    ["faasrt.protocol"],
    ["faasrt.local"],
    ["faasrt.local.jail"],
    ["faasrt.local.engines"],
    ["faasrt.local.http"],
    ["faasrt.local.engine_choice", "faasrt.local.engine_tasks", "faasrt.local.server"],
    ["faasrt.telemetry.otel", "faasrt.testing", "faasrt.transport"],
    ["faasrt.client"],
    ["faasrt.cli", "faasrt.ray", "faasrt.sync", "faasrt.testing.pytest_plugin", "faasrt.web"],
    ["faasrt.__main__", "faasrt._shared_manager", "faasrt.examples", "faasrt.inspect_ai", "faasrt.rewards"],
]
# Imports that are executed on first use only, so they may go to any layer.
LAZY = {("faasrt.client.embedded", "faasrt.local.server"), ("faasrt.local", "faasrt.local.server")}
# The launcher of a jail imports these modules as the package `jail`, in an interpreter that may not have faasrt.
LAUNCHER = (
    *("branches", "canary", "confinement", "executor", "landlock", "launcher", "namespaces", "pidfds"),
    *("process_memory", "program", "scheduling", "seccomp", "slot", "stack", "syscalls", "template"),
    *("users", "watch"),
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


def level_of(module: str) -> int:
    levels = {prefix: level for level, prefixes in enumerate(LAYERS) for prefix in prefixes}
    while module not in levels:
        module = module.rpartition(".")[0]
    return levels[module]


@pytest.mark.parametrize("module", modules())
def test_no_imports_from_higher_layers(module: str) -> None:
    """A module imports only from its own layer and from lower ones."""
    for imported in imports_of(modules()[module], modules()):
        if (module, imported) not in LAZY:
            assert level_of(imported) <= level_of(module), f"{module} imports {imported}"


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_modules_of_the_launcher_import_only_each_other(name: str) -> None:
    """Other imports of these modules are of the standard library."""
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
