"""Finds the examples in the docstrings of the package, and runs them like `doctest`, but with top-level await.

`doctest` itself does not support top-level await, and xdoctest accepts output that the docstring does not contain.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import traceback
import types
from collections.abc import Iterator
from typing import Any

import faasrt
from support.package import modules

_FLAGS = doctest.ELLIPSIS


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield each docstring of the package, with the dotted name of its module, class or function."""
    for module, path in modules().items():
        yield from _below(module, ast.parse(path.read_text()))


def _below(name: str, node: ast.Module | ast.stmt) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield name, text
        for child in node.body:
            yield from _below(f"{name}.{getattr(child, 'name', '')}", child)


def examples(name: str, docstring: str) -> list[doctest.Example]:
    """Return the examples of a docstring, in order."""
    return doctest.DocTestParser().get_examples(docstring, name)


async def run(name: str, docstring: str, **names: Any) -> None:
    """Run the examples of a docstring in order, and compare their output.

    They can use `asyncio`, `faasrt`, the public names of the package, and `names`.
    """
    public = {public: getattr(faasrt, public) for public in faasrt.__all__}
    namespace = {"asyncio": asyncio, "faasrt": faasrt, **public, **names}
    for example in examples(name, docstring):
        got = await _run_one(name, example, namespace)
        wanted = example.want if example.exc_msg is None else example.exc_msg
        checker = doctest.OutputChecker()
        flags = _FLAGS | sum(flag for flag, on in example.options.items() if on)
        if not checker.check_output(wanted, got, flags):
            raise AssertionError(f"{name}:\n{example.source}\n{checker.output_difference(example, got, flags)}")


async def _run_one(name: str, example: doctest.Example, namespace: dict[str, Any]) -> str:
    """Return the output of an example, or the last line of the exception that it is documented to raise."""
    code = compile(example.source, name, "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            outcome = types.FunctionType(code, namespace)()
            if inspect.iscoroutine(outcome):
                await outcome
        except Exception as error:
            if example.exc_msg is None:
                raise
            return traceback.format_exception_only(error)[-1]
    assert example.exc_msg is None, f"{name}: nothing was raised by\n{example.source}"
    return printed.getvalue()
