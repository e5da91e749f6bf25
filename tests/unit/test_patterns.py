"""Every regular expression of the package takes linear time. A scan of the source finds all of them.

A pattern is tried on texts that repeat parts of what it matches. A text that is four times as long may take at most
nine times as much CPU time.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import attrs
import pytest

import faasrt

ROOT = Path(faasrt.__file__).parent
FUNCTIONS = {"compile", "search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}
# Characters that stand for those of a class, besides the ones in the pattern.
_POOL = "a \nA0_.:'\"\t/$-é"
_VARIANTS = 3
_SIZES = (2_048, 8_192, 32_768)
# Shorter times are not compared, because they would be noise.
_MEASURABLE_S = 0.004


@attrs.frozen
class Site:
    """A call of the module `re`.

    Attributes:
        path: The path of its file in the package.
        source: The source of its first argument.
        pattern: The compiled pattern; None if it depends on variables of a function.
        only_at_start: Whether it is compared with the start of texts only.
    """

    path: str
    source: str
    pattern: re.Pattern[Any] | None
    only_at_start: bool


def find_sites(root: Path = ROOT) -> list[Site]:
    """Return all calls of the module `re` in the package, also those in the programs that run in sandboxes."""
    sites = []
    for file in sorted(root.rglob("*.py")):
        text, path = file.read_text("utf-8"), file.relative_to(root).as_posix()
        if not re.search(r"\bre\b", text):
            continue
        tree = ast.parse(text)
        nodes = [*ast.walk(tree)]
        names = {f"re.{name}" for name in FUNCTIONS}
        for node in nodes:
            if isinstance(node, ast.Import):
                assert not any(one.name == "re" and one.asname for one in node.names), f"{path}: import re as re"
            elif isinstance(node, ast.ImportFrom) and node.module == "re":
                names |= {one.asname or one.name for one in node.names if one.name in FUNCTIONS}
        calls = [node for node in nodes if isinstance(node, ast.Call) and _dotted(node.func) in names]
        sites += [_site(path, call, nodes) for call in calls]
    return sites


def _dotted(node: ast.expr) -> str:
    """Return the source of a name or of an attribute of a name; "" for other expressions."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _site(path: str, call: ast.Call, nodes: list[ast.AST]) -> Site:
    arguments = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
    flags = [one for one in arguments if ast.unparse(one).startswith("re.")]
    source = ast.unparse(call.args[0])
    methods = {ast.unparse(call.func).rpartition(".")[2]}
    for node in nodes:
        if isinstance(node, ast.Assign) and node.value is call:
            # All uses of the name in its module. One that is not the call of a method may be any.
            name = ast.unparse(node.targets[0])
            uses = [one for one in nodes if isinstance(one, ast.Attribute) and _dotted(one.value) == name]
            others = [one for one in nodes if isinstance(one, ast.Name) and one.id == name]
            if len(others) == len(uses) + 1:
                methods = {one.attr for one in uses}
    try:
        scope = vars(importlib.import_module(f"faasrt.{path.removesuffix('.py').replace('/', '.')}"))
    except Exception:  # a program that only a sandbox can run
        scope = {}
    # Evaluated as the module does it, because constants of the module can be parts of the pattern.
    scope = {**scope, "re": re}
    try:
        pattern = re.compile(eval(source, scope), *[eval(ast.unparse(one), scope) for one in flags])
    except NameError:
        pattern = None
    return Site(path, source, pattern, methods <= {"match", "fullmatch"})


def attacks(pattern: re.Pattern[Any]) -> Iterator[Any]:
    """Yield units that repeated texts may consist of, each with a text before them: parts of texts that match."""
    is_bytes = isinstance(pattern.pattern, bytes)
    top = _flatten(_parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG))
    literals = "".join(sorted({chr(value) for op, value in _walk(top) if op == "LITERAL"}))
    found: dict[tuple[str, str], None] = {}
    for variant in range(_VARIANTS):
        sample = _Sampler(literals + _POOL, variant)
        for items in _sequences(top):
            for start in range(len(items)):
                before = sample(items[:start]) if items is top else ""
                for end in range(start + 1, len(items) + 1):
                    unit = sample(items[start:end])
                    if unit:
                        found[before, unit] = found["", unit] = None
    for before, unit in found:
        yield (before.encode("latin-1", "replace"), unit.encode("latin-1", "replace")) if is_bytes else (before, unit)


def _flatten(parsed: Any) -> list[Any]:
    """Return the items of a parsed pattern. Groups are replaced by their items, and adjacent characters are one."""
    items: list[Any] = []
    for op, value in parsed:
        name = str(op)
        if name == "SUBPATTERN":
            items += _flatten(value[-1])
        elif name == "ATOMIC_GROUP":
            items += _flatten(value)
        elif name == "LITERAL" and items and items[-1][0] == "TEXT":
            items[-1] = "TEXT", items[-1][1] + chr(value)
        elif name == "LITERAL":
            items.append(("TEXT", chr(value)))
        else:
            items.append((name, value))
    return items


def _inner(name: str, value: Any) -> list[list[Any]]:
    if name.endswith("REPEAT"):
        return [_flatten(value[2])]
    if name == "BRANCH":
        return [_flatten(option) for option in value[1]]
    return [_flatten(value[1])] if name in ("ASSERT", "ASSERT_NOT") else []


def _sequences(items: list[Any]) -> Iterator[list[Any]]:
    yield items
    for name, value in items:
        for inner in _inner(name, value):
            yield from _sequences(inner)


def _walk(items: list[Any]) -> Iterator[tuple[str, Any]]:
    for name, value in items:
        if name == "TEXT":
            yield from (("LITERAL", ord(one)) for one in value)
        elif name == "NOT_LITERAL":
            yield "LITERAL", value
        elif name == "IN":
            yield from (("LITERAL", one) for op, one in value if str(op) == "LITERAL")
        for inner in _inner(name, value):
            yield from _walk(inner)


@attrs.frozen
class _Sampler:
    """Returns a text that matches items. `variant` chooses between several ones."""

    pool: str
    variant: int

    def __call__(self, items: Sequence[Any]) -> str:
        return "".join(self._one(name, value) for name, value in items)

    def _one(self, name: str, value: Any) -> str:
        match name:
            case "TEXT":
                return str(value)
            case "ANY":
                return self._choose([one for one in self.pool if one != "\n"])
            case "NOT_LITERAL":
                return self._choose([one for one in self.pool if ord(one) != value])
            case "IN":
                return self._choose([one for one in self.pool if _is_in(value, one)])
            case "BRANCH":
                return self(_flatten(self._choose(value[1])))
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                return self(_flatten(value[2])) * max(1, min(value[0], 100))
            case "AT":
                return "\n" if self.variant == 1 else ""
        return ""

    def _choose(self, options: Sequence[Any]) -> Any:
        return options[self.variant % len(options)] if options else ""


def _is_in(items: list[Any], character: str) -> bool:
    negated, found = False, False
    for op, value in items:
        match str(op):
            case "NEGATE":
                negated = True
            case "LITERAL":
                found |= ord(character) == value
            case "RANGE":
                found |= value[0] <= ord(character) <= value[1]
            case "CATEGORY":
                letter = {"DIGIT": "d", "SPACE": "s", "WORD": "w"}[str(value).rpartition("_")[2]]
                letter = letter.upper() if "_NOT_" in str(value) else letter
                found |= re.match(rf"\{letter}", character) is not None
    return found is not negated


def find_slow_text(pattern: re.Pattern[Any], *, only_at_start: bool = False) -> str:
    """Return a description of a text for which a pattern takes more than linear time; "" if there seems to be none."""

    def scan(text: Any) -> object:
        if only_at_start:
            return pattern.match(text), pattern.fullmatch(text)
        return sum(1 for _ in pattern.finditer(text))

    for before, unit in attacks(pattern):
        end = b"\x00" if isinstance(unit, bytes) else "\x00"
        texts = [before + unit * (size // len(unit)) + end for size in _SIZES]
        for short, long in itertools.pairwise(texts):
            if _cpu_s(scan, long, 1) > _MEASURABLE_S:
                # The second comparison is for busy machines.
                if all(_cpu_s(scan, long, times) > 9 * _cpu_s(scan, short, times) for times in (2, 5)):
                    return f"{before!r} and {unit!r} repeated"
                break
    return ""


def _cpu_s(scan: Callable[[Any], object], text: Any, times: int) -> float:
    measured = []
    for _ in range(times):
        started = time.thread_time()
        scan(text)
        measured.append(time.thread_time() - started)
    return min(measured)


SITES = find_sites()
# Patterns with variables of a function, by their source, and patterns as they look then.
WITH_VARIABLES: dict[str, list[str | bytes]] = {
    "b'%b(?=:\\\\d)' % re.escape(url)": [rb"data:application/typescript;base64,AAAA(?=:\d)"],
    "re.escape(url) + (b'(?=:\\\\d)' if has_position else b'')": [rb"blob:null/0(?=:\d)", rb"blob:null/0"],
    "f'\\\\s*({comment}|$)'": [r"\s*(#|$)", r"\s*(//|$)"],
    # Of the caller, and for names of files only.
    "translate(part)": [],
}


@pytest.mark.parametrize("site", [site for site in SITES if site.pattern], ids=lambda site: site.path)
def test_a_pattern_takes_linear_time(site: Site) -> None:
    assert site.pattern is not None
    assert find_slow_text(site.pattern, only_at_start=site.only_at_start) == ""


@pytest.mark.parametrize("site", [site for site in SITES if not site.pattern], ids=lambda site: site.path)
def test_a_pattern_with_variables_takes_linear_time(site: Site) -> None:
    """Each one is in the table."""
    for pattern in WITH_VARIABLES[site.source]:
        assert find_slow_text(re.compile(pattern), only_at_start=site.only_at_start) == ""


def test_the_scan_finds_patterns_of_all_kinds() -> None:
    """Compiled ones and others, in the client, the server, the command line, and the programs in sandboxes."""
    paths = {site.path for site in SITES}
    assert len(SITES) > 60
    assert {path.partition("/")[0] for path in paths} >= {"cli", "local", "protocol", "telemetry"}
    assert "protocol/guest/python_files.py" in paths


@pytest.mark.parametrize(
    "pattern",
    [
        r": (?:xmalloc|xrealloc): (?:.*: )?cannot allocate \d+ bytes",
        r"^thread '.*' (?:\(\d+\) )?panicked at .*:\n",
        r'"[^"\\]*+(?:\\.[^"\\]*+)*+"',
        rb"\{[^}]*\}",
    ],
)
def test_slow_patterns_are_recognized(pattern: str | bytes) -> None:
    """Patterns of the package from before, and usual mistakes."""
    assert find_slow_text(re.compile(pattern)) != ""
