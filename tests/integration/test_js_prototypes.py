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
from support.js_patches import NODE_BREAKS, PATCHES, THENABLE
from support.tables import block

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
SAMPLE = 4
TABLE = [
    pytest.param(place, name, part, marks=[needs_node] if place == "node" else [])
    for part, (place, name) in enumerate(ROWS)
    if place == "deno" or name == "cases"
]
TABLE += [pytest.param(place, name, None, marks=[pytest.mark.tables, needs_node]) for place, name in ROWS]
"""Each place with some of its programs, and each of them with every fourth patch; with `-m tables`, all."""


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
