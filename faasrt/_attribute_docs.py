"""Lists the attributes of a class in its docstring, from the strings below them in the source."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import TypeVar

_Class = TypeVar("_Class", bound=type)
_BLOCKS = (ast.ClassDef, ast.FunctionDef)


def list_attributes(kind: _Class) -> _Class:
    """Let the docstring of a class, and so `help`, list its attributes with the docstrings below them.

    Editors show these docstrings, but Python does not keep them. They are read from the source when the docstring of
    the class is read, so that imports take no longer. The list has the attributes of private base classes too.
    """
    kind.__doc__ = _ClassDocstring(kind.__doc__)  # type: ignore[assignment]
    return kind


class _ClassDocstring:
    def __init__(self, text: str | None) -> None:
        self._text = text

    def __get__(self, instance: object, kind: type) -> str | None:
        if self._text is None:  # Python runs without docstrings
            return None
        try:
            attributes = dict(_attributes(kind))
        except (OSError, TypeError, SyntaxError):  # the source is missing, or has changed since the import
            return self._text
        text = inspect.cleandoc(self._text)
        end = re.search(r"^(Raises|Example):$", text, re.MULTILINE)
        position = end.start() if end else len(text)
        listed = "\n".join(f"{name}: {textwrap.indent(doc, '    ').strip()}" for name, doc in attributes.items())
        parts = text[:position].rstrip(), "Attributes:\n" + textwrap.indent(listed, "    "), text[position:]
        return "\n\n".join(filter(None, parts))


def _attributes(kind: type) -> Iterator[tuple[str, str]]:
    """Yield the names and docstrings of attributes, which are below their definitions in the class or a method."""
    for owner in reversed(kind.__mro__):
        if owner is not kind and not owner.__name__.startswith("_"):
            continue
        blocks = [node for node in ast.walk(ast.parse(inspect.getsource(owner))) if isinstance(node, _BLOCKS)]
        for statement, following in chain.from_iterable(pairwise(block.body) for block in blocks):
            match statement, following:
                case (
                    ast.Assign(targets=[ast.Name(id=name) | ast.Attribute(attr=name)])
                    | ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name)),
                    ast.Expr(value=ast.Constant(value=str() as doc)),
                ):
                    yield name, inspect.cleandoc(doc)
