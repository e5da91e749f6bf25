"""The asserts of verl's `assert_case`, which verl appends to the program, as test programs of their own.

There, an assert may use the modules that verl imports, several functions, and methods of a class `Solution`.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Sequence

from faasrt._assert_programs import AssertProgram
from faasrt.errors import InvalidRequestError, safe_repr

CALL = "_faasrt_call"
"""The function of the judged program that calls another one by its name, if the asserts use several."""
CALL_EPILOGUE = f"""
def {CALL}(name, *args, **kwargs):
    method, _, name = name.rpartition(".")
    if not method and name in globals():
        return globals()[name](*args, **kwargs)
    return getattr(Solution(), name)(*args, **kwargs)
"""
_FUNCTION = f"""
def {{0}}(*args, **kwargs):
    return {CALL}({{0!r}}, *args, **kwargs)
"""
_SOLUTION = f"""
class Solution:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: {CALL}("Solution." + name, *args, **kwargs)
"""


def complete_asserts(
    asserts: Sequence[object], function: str | None, modules: Sequence[str]
) -> tuple[list[str], str | None, list[str]]:
    """Return the test programs, the function that they call, and the names that the judged program must define.

    Args:
        asserts: The asserts.
        function: The function, if it is known.
        modules: The modules whose names an assert may use without importing them. The last one that has a name counts.

    Raises:
        InvalidRequestError: An assert is wrong, or tests something else than functions and methods of `Solution`.
    """
    programs = [AssertProgram.parse(each) for each in asserts]
    # Names may also come from "import *" in an assert.
    undefined = [
        program.undefined() & {function} if "*" in program.defined else program.undefined() for program in programs
    ]
    every = sorted(set().union(*undefined))
    imports = {name: line for name in every if name != function and (line := _find_import(name, modules))}
    tested = [name for name in every if name not in imports]
    if not tested and len(every) == 1:
        tested, imports = every, {}
    if len(tested) > 1:
        for name in tested:
            if name not in ("Solution", function) and name[:1].isupper():
                raise InvalidRequestError(
                    f"'assert_case' must test functions or methods of Solution, got {safe_repr(name)}"
                )
    if any(_has_attribute(program.text, set(tested) - {"Solution"}) for program in programs):
        raise InvalidRequestError("'assert_case' uses an attribute of a name that it does not define")
    needs_call = len(tested) > 1 or "Solution" in tested
    if needs_call and any(program.only_defines_check for program in programs):
        raise InvalidRequestError("'assert_case' must call the function check that it defines")
    texts = []
    for program, names in zip(programs, undefined, strict=True):
        lines = [imports[name] for name in sorted(names & imports.keys())]
        if needs_call:
            own = sorted(names & set(tested))
            lines += [_SOLUTION if name == "Solution" else _FUNCTION.format(name) for name in own]
        texts.append("\n".join([*lines, program.text]))
    if needs_call:
        return texts, CALL, tested
    called = function or (tested[0] if tested else None)
    return texts, called, [called] if called else []


def _find_import(name: str, modules: Sequence[str]) -> str | None:
    if name in modules and name != "typing":
        return f"import {name}"
    for module in reversed(modules):
        found = importlib.import_module(module)
        if name in getattr(found, "__all__", [each for each in dir(found) if each[:1] != "_"]):
            return f"from {module} import {name}"
    return None


def _has_attribute(program: str, names: set[str]) -> bool:
    return any(
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
        for node in ast.walk(ast.parse(program))
    )
