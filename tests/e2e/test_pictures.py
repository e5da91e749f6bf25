"""The pictures of the guide: each stands in a page, with a text for readers who do not see it, and names real code.

`e2e.report_picture` makes `report.webp`, `e2e.layers_picture` makes `layers.svg`, and `.ci/docs/dashboard.py` makes
`dashboard.webp`. The other drawings have no other source.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from e2e import layers_picture
from support.package import PACKAGE, modules

PICTURES = PACKAGE / "docs" / "images"
SVG = "{http://www.w3.org/2000/svg}"
DRAWINGS = sorted(PICTURES.glob("*.svg"))
MAX_BYTES = 150_000


def names() -> Iterator[str]:
    """Yield the names of the modules and classes of the package, and of the methods of classes."""
    yield from modules()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield node.name
                for member in node.body:
                    if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                        yield f"{node.name}.{member.name}"


def test_pages_show_every_picture() -> None:
    """Every picture stands in a page of the guide, and its alternative text says what it shows."""
    pages = [path.read_text("utf-8") for path in PICTURES.parent.rglob("*.md")]
    shown = [found for page in pages for found in re.findall(r"!\[([^\]]*)\]\(images/([^)]+)\)", page)]
    assert {name for _, name in shown} == {path.name for path in PICTURES.iterdir()}
    for alternative, name in shown:
        assert len(alternative.split()) > 8, name


def test_pictures_are_small() -> None:
    """A page with a picture loads fast."""
    assert {path.name: path.stat().st_size for path in PICTURES.iterdir() if path.stat().st_size > MAX_BYTES} == {}


def test_drawings_name_classes_and_methods_that_exist() -> None:
    """The code in drawings consists of names of modules, classes and methods, and commands."""
    code = {node.text for path in DRAWINGS for node in ElementTree.parse(path).iter() if node.get("class") == "code"}
    named = {name for name in code if not name.startswith("faasrt ")}
    assert "RuntimeManager.run_code" in named
    assert named <= set(names())


def test_the_picture_of_the_layers_is_that_of_the_code() -> None:
    """It is what the program draws, and imports lead down in it."""
    assert layers_picture.wrong_imports() == set()
    assert layers_picture.drawing() == (PICTURES / "layers.svg").read_text("utf-8")


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)
def test_drawings_follow_the_colours_of_the_system_and_load_nothing(path: Path) -> None:
    """A drawing has a title and a dark mode, and loads nothing."""
    text = path.read_text("utf-8")
    tree = ElementTree.fromstring(text)
    assert tree[0].tag == f"{SVG}title"
    assert "@media (prefers-color-scheme: dark)" in text
    drawn = {"svg", "title", "style", "rect", "path", "g", "text", "tspan"}
    assert {node.tag.removeprefix(SVG) for node in tree.iter()} <= drawn
    assert "url(" not in text
    assert "@import" not in text
