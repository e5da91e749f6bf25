"""The layers of the package, and the imports of its modules."""

from __future__ import annotations

import ast
from pathlib import Path

# The modules and packages of each layer, from the lowest. The longest prefix of a module decides. The lowest layer has
# all modules of the package that are not named: records, settings, and what they need.
LAYERS = [
    ["faasrt"],
    ["faasrt.protocol"],
    ["faasrt.local"],
    ["faasrt.local.jail.launcher"],
    ["faasrt.local.jail"],
    ["faasrt.local.engines"],
    ["faasrt.local.http"],
    ["faasrt.local.engine_choice", "faasrt.local.engine_tasks", "faasrt.local.server"],
    ["faasrt.telemetry.otel", "faasrt.testing", "faasrt.transport"],
    ["faasrt.client"],
    ["faasrt.agents", "faasrt.cli", "faasrt.ray", "faasrt.sync", "faasrt.testing.pytest_plugin", "faasrt.web"],
    ["faasrt.__main__", "faasrt.examples", "faasrt.inspect_ai", "faasrt.rewards"],
]
# Imports that are executed on first use only, so they may go to any layer.
LAZY = {("faasrt.client.local_faas", "faasrt.local.server"), ("faasrt.local", "faasrt.local.server")}


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
