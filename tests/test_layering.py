"""The house: a file imports only from lower floors, or from its own package without going in circles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "faasrt"
# The first prefix that fits tells the floor.
FLOORS = [
    ("faasrt.examples", 10),
    ("faasrt.cli", 9),
    ("faasrt.ray", 9),
    ("faasrt.testing.pytest_plugin", 9),
    ("faasrt.manager", 8),
    ("faasrt.factory", 7),
    ("faasrt.mapping", 7),
    ("faasrt.map_options", 5),
    ("faasrt.result_stream", 5),
    ("faasrt.embedded", 7),
    ("faasrt.runtime", 6),
    ("faasrt.transport", 5),
    ("faasrt.telemetry", 5),
    ("faasrt.local", 5),
    ("faasrt.testing", 5),
    ("faasrt.protocol", 4),
    ("faasrt.emitter", 4),
    ("faasrt.batch", 4),
    ("faasrt.validation", 4),
    ("faasrt.validation_main", 4),
    ("faasrt.config", 3),
    ("faasrt.results", 3),
    ("faasrt.events", 3),
    ("faasrt.metrics", 3),
    ("faasrt.languages", 2),
    ("faasrt.errors", 1),
    ("faasrt.strict_json", 1),
    ("faasrt._version", 1),
    ("faasrt", 10),
]
# Loaded when they are first used, so that the floors above can do without them.
LAZY = {("faasrt.manager", "faasrt.local.server"), ("faasrt.embedded", "faasrt.local.server")}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name == "guest" and path.name != "__init__.py":
            continue  # these run inside the sandboxes
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports while it runs; those for type checkers only do not count."""
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


def floor(module: str) -> int:
    return next(level for prefix, level in FLOORS if module == prefix or module.startswith(prefix + "."))


@pytest.mark.parametrize("module", modules())
def test_imports_only_from_lower_floors(module: str) -> None:
    """Every import goes down, or stays within the package."""
    for imported in imports_of(modules()[module], modules()):
        if imported == "faasrt" or (module, imported) in LAZY:
            continue  # the package itself gives the version, and loads the rest lazily
        same_package = module.split(".")[1:2] == imported.split(".")[1:2]
        assert same_package or floor(imported) < floor(module), f"{module} imports {imported}"


def test_has_no_circles() -> None:
    """Within a package too, imports go one way."""
    known = modules()
    graph = {module: imports_of(path, known) - {"faasrt", module} for module, path in known.items()}
    graph["faasrt"] = set()
    list(TopologicalSorter(graph).static_order())


def test_files_stay_small() -> None:
    """A file of more than 400 lines must be split."""
    long = {name: lines for name, path in modules().items() if (lines := len(path.read_text().splitlines())) > 400}
    assert not long
