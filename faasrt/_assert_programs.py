"""Test programs with asserts, as strings: what they define, and which function they test. Nothing is run here."""

from __future__ import annotations

import ast
import builtins
import warnings
from collections.abc import Iterator

import attrs

from faasrt.errors import InvalidRequestError, safe_repr

_MAX_CHARACTERS = 1_048_576


@attrs.frozen
class AssertProgram:
    """A test program: Python with `assert` statements about a function.

    `defined` has the names that it defines, in any scope; "*" if it imports all names of a module.
    """

    text: str
    used: frozenset[str]
    defined: frozenset[str]
    only_defines_check: bool

    @classmethod
    def parse(cls, program: object) -> AssertProgram:
        """Parse a program. Raise InvalidRequestError if it is not a str, too long, not Python, or has no `assert`."""
        if not isinstance(program, str):
            raise InvalidRequestError(f"program must be a str, got {type(program).__name__}")
        tree = _parse(program)
        if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
            raise InvalidRequestError(f"program must have an assert statement, got {safe_repr(program)}")
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        defines_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
        only_defines_check = defines_check and "check" not in used
        return cls(program, frozenset(used), frozenset(_defined_names(tree)), only_defines_check)

    def find_function(self) -> str:
        """Return the only name that the program reads and does not define."""
        undefined = sorted(self.undefined())
        if len(undefined) == 1 and "*" not in self.defined:
            return undefined[0]
        found = f"uses {', '.join(undefined)[:200]}" if undefined else "uses no other name"
        raise InvalidRequestError(f"the test program {found} without a definition: pass function=")

    def undefined(self) -> set[str]:
        """Return the names that the program reads and does not define, without the names of builtins."""
        return set(self.used) - self.defined - {"__name__"} - set(dir(builtins))

    def complete(self, function: str) -> str:
        """Add a call of `check` if the program only defines it, as programs of HumanEval do."""
        if function in self.defined or not (self.only_defines_check or function in self.used):
            reason = "defines" if function in self.defined else "does not use"
            raise InvalidRequestError(f"the test program {reason} {function}, the function that is tested")
        undefined = self.undefined() - {function}
        if undefined and "*" not in self.defined:
            raise InvalidRequestError(
                f"the test program uses {', '.join(sorted(undefined))[:200]}, and does not define it. It runs in a "
                f"process of its own, to which only {function} is known: add the definition to the test program"
            )
        return f"{self.text}\n\ncheck({function})\n" if self.only_defines_check else self.text


def _parse(program: str) -> ast.Module:
    if len(program) > _MAX_CHARACTERS:
        raise InvalidRequestError(f"program must have at most {_MAX_CHARACTERS:,} characters, got {len(program):,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(program, "test.py")
    except SyntaxError as error:
        raise InvalidRequestError(f"program must be Python: {error.msg} in line {error.lineno}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidRequestError(f"program must be Python: the parser refuses it ({error})") from None


def _defined_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name is not None:
            yield node.name
        elif isinstance(node, ast.MatchMapping) and node.rest is not None:
            yield node.rest
