"""The page *How the code is laid out*: its names exist, and its rooms are those of the layers."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from support.layers import LAYERS
from support.package import PACKAGE, ROOT

PAGE = (PACKAGE / "docs" / "code-layout.md").read_text("utf-8")
# What is not a name of the code: commands, and words of URLs and configurations.
OTHERS = {
    *("NAME+http://...", "dev", "vX.Y.Z", "tests/", "local", "wasm", "map"),
    *("ruff check . && ruff format --check . && mypy", "pytest -n 4", "bash .ci/run", "bash .ci/run all"),
    *("python .ci/docs site", "python -m e2e.layers_picture", "python -m build"),
}


def defined(body: list[ast.stmt], owner: str = "") -> Iterator[str]:
    """Yield the names that a module defines, and those of its classes as `Class.name`."""
    for node in body:
        match node:
            case ast.ClassDef():
                yield node.name
                yield from defined(node.body, f"{node.name}.")
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield owner + node.name
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield owner + name


@functools.cache
def names() -> set[str]:
    return {name for path in PACKAGE.rglob("*.py") for name in defined(ast.parse(path.read_text("utf-8")).body)}


def methods() -> set[str]:
    return {name.partition(".")[2] for name in names() if "." in name}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([^`\n]+)`", PAGE)) - OTHERS))
def test_every_name_on_the_page_exists(name: str) -> None:
    """It is a file or a folder, in the checkout or below `faasrt/`, or a name that a module or a class defines."""
    is_path = "/" in name or re.search(r"\.(py|md|toml)$", name)
    if is_path:
        found = [folder / name for folder in (ROOT, PACKAGE) if (folder / name).exists()]
        assert found, name
        assert found[0].is_dir() == name.endswith("/") or name == ".ci/packages"
    else:
        assert name in names() | methods(), name


def test_the_rooms_are_those_of_the_layers() -> None:
    """Each row of the table is a layer, in order."""
    table = PAGE.partition("| layer | what it holds |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in table.splitlines()]
    layers = [[layer.removeprefix("faasrt.").replace(".", "/") for layer in each] for each in LAYERS]
    assert [[module.removesuffix("/").removesuffix(".py") for module in row] for row in rows[1:]] == layers[1:]


def test_names_that_do_not_exist_are_found() -> None:
    """A method of another class, and a name that nothing defines, are not names of the code."""
    assert {"RuntimeManager.run_code", "RUST", "open_jail"} <= names()
    assert {"Runtime.resume_session", "Launchpad"}.isdisjoint(names() | methods())
