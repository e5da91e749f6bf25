"""The docstrings below attributes, and the docstrings of classes that list them."""

from __future__ import annotations

import inspect
import linecache
import pydoc
import sys
from pathlib import Path

import pytest

from support.records import public_records

MODULE = '''
from faasrt._attribute_docs import list_attributes


class _Base:
    first: int
    """The first."""


@list_attributes
class Kind(_Base):
    r"""A class with a \\.

    Raises:
        ValueError: The number is wrong.
    """

    second: int = 2
    """The second, on
    two lines."""
    undocumented: int = 3

    def __init__(self) -> None:
        self.third = 3
        """The third."""


class Child(Kind):
    pass
'''


@pytest.mark.parametrize(("name", "fields"), public_records().items())
def test_help_has_a_text_for_each_field_of_a_record(name: str, fields: list[str]) -> None:
    """In the order of the fields."""
    shown = pydoc.plain(pydoc.render_doc(pydoc.locate(name))).partition("Attributes:\n")[2]
    positions = [shown.find(f" |      {field}: ") for field in fields]
    assert -1 not in positions, dict(zip(fields, positions, strict=True))
    assert positions == sorted(positions)


def test_a_docstring_lists_attributes_before_the_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from private base classes, the class and `__init__`. A subclass inherits the docstring as a whole."""
    (tmp_path / "kinds.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    kind = pydoc.locate("kinds.Kind")
    expected = r"""A class with a \.

Attributes:
    first: The first.
    second: The second, on
        two lines.
    third: The third.

Raises:
    ValueError: The number is wrong."""
    assert inspect.getdoc(kind) == expected
    assert inspect.getdoc(pydoc.locate("kinds.Child")) == expected


@pytest.mark.parametrize("source", ["", "class Kind", "class Kind:\n" + "    x = (\n" * 20])
def test_without_its_source_a_docstring_lists_no_attributes(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the file changes after the import."""
    path = tmp_path / "changed.py"
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "changed", raising=False)
    kind = pydoc.locate("changed.Kind")
    path.write_text(source)
    linecache.checkcache()
    assert inspect.getdoc(kind) == "A class with a \\.\n\nRaises:\n    ValueError: The number is wrong."


def test_the_docstring_of_a_class_of_an_unknown_module_lists_no_attributes() -> None:
    namespace = {"__name__": "unknown"}
    exec(MODULE, namespace)
    assert "Attributes" not in str(inspect.getdoc(namespace["Kind"]))
