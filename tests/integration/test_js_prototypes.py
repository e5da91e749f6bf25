"""Results of JavaScript programs do not depend on what the programs do to shared prototypes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest

from faasrt import RuntimeManager, Settings
from support.doubles import JsFaas
from support.doubles.piston import Piston
from support.helpers import PATIENT
from support.tables import block

# Statements that change prototypes which every program shares with its runner.
THROWS = "{ throw new Error('patched') }"
DEFINE = "const define = (o, n, d) => Object.defineProperty(o, n, { __proto__: null, configurable: true, ...d });"
TYPED = "Object.getPrototypeOf(Uint8Array.prototype)"
ITERATORS = "Object.getPrototypeOf(Object.getPrototypeOf([][Symbol.iterator]()))"


def getter(target: str, name: str, body: str = THROWS) -> str:
    return f"{DEFINE} define({target}, {name}, {{ get() {body} }});"


def value(target: str, name: str, value: str = f"function () {THROWS}") -> str:
    return f"{DEFINE} define({target}, {name}, {{ value: {value}, writable: true }});"


PATCHES = {
    "a getter for the first element": "Object.defineProperty(Array.prototype, '0', { get() { return 1 } });",
    "a setter for elements": f"""
        {DEFINE}
        for (let n = 0; n < 9; n += 1) define(Array.prototype, `${{n}}`, {{ set() {THROWS} }});
    """,
    "read-only elements": f"""
        {DEFINE}
        for (let n = 0; n < 9; n += 1) define(Array.prototype, `${{n}}`, {{ value: 1 }});
    """,
    "elements of all objects": f"""
        {DEFINE}
        for (let n = 0; n < 9; n += 1) define(Object.prototype, `${{n}}`, {{ get() {{ return 1 }} }});
    """,
    "a frozen Array.prototype": "Object.freeze(Array.prototype);",
    "a frozen Object.prototype": "Object.freeze(Object.prototype);",
    "all prototypes frozen": """
        for (const name of Object.getOwnPropertyNames(globalThis)) {
          if (name === 'process') continue;
          const { prototype } = globalThis[name] ?? {};
          if (prototype) Object.freeze(prototype)
        }
    """,
    "the iterator of arrays": value("Array.prototype", "Symbol.iterator"),
    "no iterator of arrays": "delete Array.prototype[Symbol.iterator];",
    "the iterator of strings": value("String.prototype", "Symbol.iterator"),
    "the next element of iterators": f"""
        for (const made of [[][Symbol.iterator](), new Map().entries(), new Set().values()])
          Object.getPrototypeOf(made).next = function () {THROWS};
    """,
    "no methods of iterators": f"delete {ITERATORS}[Symbol.iterator];",
    "no methods of arrays": """
        for (const name of Object.getOwnPropertyNames(Array.prototype))
          if (name !== 'length' && name !== 'constructor') delete Array.prototype[name];
    """,
    "no methods of strings": """
        for (const name of Object.getOwnPropertyNames(String.prototype))
          if (name !== 'length' && name !== 'constructor') delete String.prototype[name];
    """,
    "the splitter of strings": value("String.prototype", "Symbol.split"),
    "the replacer of strings": value("String.prototype", "Symbol.replace"),
    "the splitter of objects": value("Object.prototype", "Symbol.split"),
    "no methods of regular expressions": """
        for (const name of Reflect.ownKeys(RegExp.prototype)) delete RegExp.prototype[name];
    """,
    "the flags of regular expressions": getter("RegExp.prototype", "'flags'"),
    "no methods of functions": "for (const name of ['apply', 'bind', 'call']) delete Function.prototype[name];",
    "toJSON of all values": """
        for (const type of [Object, Array, String, Number, Error]) type.prototype.toJSON = () => 'patched';
    """,
    "then of all objects": value("Object.prototype", "'then'"),
    "then of all objects, which resolves": value(
        "Object.prototype", "'then'", "function (resolve) { resolve('patched') }"
    ),
    "then of promises": value("Promise.prototype", "'then'"),
    "no methods of promises": """
        delete Promise.prototype.then;
        delete Promise.prototype.catch;
        delete Promise.prototype.finally;
    """,
    "the constructor of promises": value("Promise.prototype", "'constructor'", "Object"),
    "the species of promises": value("Promise", "Symbol.species", "Object"),
    "fields of descriptors": """
        for (const name of ['get', 'set', 'writable', 'value']) Object.prototype[name] = () => {};
    """,
    "fields of options": """
        for (const name of ['stream', 'fatal', 'ignoreBOM', 'type', 'endings', 'once', 'signal'])
          Object.prototype[name] = 1n;
    """,
    "fields of results": """
        for (const name of ['outcome', 'error', 'name', 'message', 'traceback', 'last', 'fields', 'depth',
          'module', 'kind', 'text', 'lost', 'exitCode', 'exit_code']) Object.prototype[name] = 'patched';
    """,
    "getters of results": f"""
        {DEFINE}
        for (const name of ['outcome', 'error', 'name', 'message', 'traceback', 'last', 'fields',
          'depth', 'module', 'kind', 'text', 'lost'])
          define(Object.prototype, name, {{ set() {THROWS}, get() {{ return undefined }} }});
    """,
    "toString of all values": f"""
        Object.prototype.toString = Number.prototype.toString = Error.prototype.toString = function () {THROWS};
    """,
    "the length of bytes": getter(TYPED, "'length'", "{ return 0 }"),
    "the buffer of bytes": getter(TYPED, "'buffer'"),
    "the constructor of bytes": value("Uint8Array.prototype", "'constructor'", "Object"),
    "the species of bytes": value("Object.getPrototypeOf(Uint8Array)", "Symbol.species", "Object"),
    "no methods of bytes": f"""
        for (const type of [Uint8Array.prototype, {TYPED}])
          for (const name of ['subarray', 'slice', 'set', 'toBase64', 'fill']) delete type[name];
    """,
    "the encoder": "TextEncoder.prototype.encode = TextDecoder.prototype.decode = null;",
    "instances of everything": f"""
        {DEFINE}
        for (const type of [Error, SyntaxError, TypeError]) define(type, Symbol.hasInstance, {{ value: () => false }});
    """,
    "properties of events": f"""
        {DEFINE}
        if (globalThis.ErrorEvent)
          for (const [type, name] of [[Event, 'defaultPrevented'], [ErrorEvent, 'error'],
            [PromiseRejectionEvent, 'reason']]) define(type.prototype, name, {{ get() {THROWS} }});
    """,
    "methods of Object": "for (const name of ['defineProperty', 'keys', 'entries', 'assign']) delete Object[name];",
    "methods of Reflect": "for (const name of Reflect.ownKeys(Reflect)) delete Reflect[name];",
    "functions of mathematics": "Math.min = Math.max = Math.ceil = Math.floor = null;",
    "globals": """
        globalThis.Array = globalThis.Object = globalThis.String = globalThis.Promise = globalThis.Error =
          globalThis.JSON = globalThis.Uint8Array = globalThis.Symbol = globalThis.RegExp = globalThis.Map = null;
    """,
}
PATCHES = {title: " ".join(patch.split()) for title, patch in PATCHES.items()}  # each in one line
THENABLE = frozenset({"toJSON of all values", "then of all objects", "then of all objects, which resolves"})
"""The patches that make a function return something else than its `return` statement says."""
NODE_BREAKS = frozenset(
    {
        "a getter for the first element",
        "a setter for elements",
        "read-only elements",
        "elements of all objects",
        "the iterator of arrays",
        "no iterator of arrays",
        "the next element of iterators",
        "no methods of arrays",
        "no methods of functions",
        "fields of descriptors",
        "fields of options",
        "getters of results",
    }
)
"""The patches with which Node.js itself cannot print or exit."""


# Each program has the patch in its first line.
RAISE = " const fail = (e) => { throw e }, error = new TypeError('boom'), outer = new Error('out', { cause: error });\n"
PROGRAMS = {
    "ends": block("""
        {patch}
        console.log('a', 1.5); return_val('r');
    """),
    "throws": RAISE + "{patch}\nconsole.log('a', 1.5); return_val('r'); (function f() { fail(error) })();",
    "throws later": RAISE + "setTimeout(() => fail(error)); {patch}\nconsole.log('a', 1.5);",
    "rejects": RAISE + "{patch}\nconsole.log('a'); await (async () => fail(outer))();",
    "throws a number": block("""
        {patch}
        throw 5;
    """),
    "cases": RAISE + "{patch}\nfunction f(x) { if (x > 1) fail(error); console.log('c', x); return x + 1 }",
    "values": block("""
        const value = [1, { a: 'é', 2: 3 }, new Map([[1, 2]]), new Set([3])]; {patch}
        function f() { return value }
    """),
}
TIMEOUT_MS = 30_000
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
ROWS = [(place, name) for place in ("deno", "js-faas", "node") for name in PROGRAMS]
SAMPLE = 7
TABLE = [
    pytest.param(place, name, part, marks=[needs_node] if place == "node" else [])
    for part, (place, name) in enumerate(ROWS)
    if place == "deno" or name == "cases"
]
TABLE += [pytest.param(place, name, None, marks=[pytest.mark.tables, needs_node]) for place, name in ROWS]
"""Each place with some of its programs, and each of them with every seventh patch; with `-m tables`, all."""


@contextlib.asynccontextmanager
async def service(name: str) -> AsyncIterator[RuntimeManager]:
    if name == "deno":
        async with RuntimeManager.local(["js"], workers=1) as manager:
            yield manager
        return
    double = JsFaas() if name == "js-faas" else Piston(run_timeout=600_000, output_max_size=65_536)
    async with double, RuntimeManager(settings=Settings(endpoints={"js": double.url}, timeouts=PATIENT)) as manager:
        yield manager


async def results_of(manager: RuntimeManager, name: str, patch: str) -> list[Any]:
    code = PROGRAMS[name].replace("{patch}", patch)
    runtime = await manager.get_runtime("js")
    if name == "cases":
        results = await runtime.run_cases(code, "f", [(0,), (2,), (1,)], timeout_ms=TIMEOUT_MS)
    elif name == "values":
        results = [await runtime.call_function(code, "f", timeout_ms=TIMEOUT_MS)]
    else:
        results = [await runtime.run_code(code, timeout_ms=TIMEOUT_MS)]
    return [(r.outcome, r.stdout, without_columns(r.stderr), r.ret_val, r.exit_code) for r in results]


def without_columns(stderr: str) -> str:
    """Return stderr without the lines of the source and the frames, whose columns depend on the length of the patch."""
    return "\n".join(line for line in stderr.splitlines() if not line.startswith(("    at ", "main.js:", " ")))


@pytest.mark.parametrize(("place", "name", "part"), TABLE)
async def test_patched_prototypes_do_not_change_results(place: str, name: str, part: int | None) -> None:
    """The outcome, the output and the error are those of the same program without the patch."""
    patches = {title: patch for title, patch in PATCHES.items() if place != "node" or title not in NODE_BREAKS}
    if name == "values":
        patches = {title: patch for title, patch in patches.items() if title not in THENABLE}
    if part is not None:
        patches = {title: patches[title] for title in list(patches)[part % SAMPLE :: SAMPLE]}
    async with service(place) as manager:
        expected = await results_of(manager, name, "")
        found = await asyncio.gather(*(results_of(manager, name, patch) for patch in patches.values()))
    different = {title: result for title, result in zip(patches, found, strict=True) if result != expected}
    assert different == {}, expected
