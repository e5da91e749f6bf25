"""Python's syntax checked here: right, fast, and safe from what a program does to a parser."""

from __future__ import annotations

import asyncio
import sys
import time

import psutil
import pytest
from helpers import manager_for

from faasrt import InvalidRequestError, RuntimeClosedError
from faasrt.validation import PythonChecker

URL = "http://127.0.0.1:1"  # nobody listens: a local check sends nothing


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("print('(')", None),
        ("# don't\nx = '''\"'''", None),
        ("while True: pass", None),
        ("import os; os._exit(1)", None),
        ("print('\\d')", None),
        ("await x", None),
        ("return 1", None),
        ("def f(:", (1, 7)),
        ("x = 1\n  y = 2", (2, 2)),
        ("x = (", (1, 5)),
        ("print('é', (", (1, 12)),
        ("x = 'abc", (1, 5)),
        ("", (1, 1)),
        (" \n\t", (1, 1)),
        ("(" * 100_000, (1, 201)),
    ],
)
async def test_places(code: str, place: tuple[int, int] | None) -> None:
    """Valid is what Python parses; a complaint has its line and column from 1; nothing is run, nothing is sent."""
    async with manager_for(URL) as manager:
        for where in ("local", "auto"):
            result = await manager.validate_code(code, "python", where=where)
            assert result.valid is (place is None)
            if place is not None:
                assert (result.diagnostics[0].line, result.diagnostics[0].column) == place
                assert result.diagnostics[0].message
            if code.strip():
                assert result.checked_by == f"CPython {sys.version.split()[0]}"


@pytest.mark.parametrize(
    "code",
    ["-" * 60_000 + "1", "-" * 2_000_000 + "1", "a" + ".b" * 1_000_000, "[]" + "[0]" * 600_000,
     "lambda:" * 50_000 + "1", "1+" * 900_000 + "1", "f'{" * 60_000, "not " * 400_000 + "1", "if 1:" * 30_000, "\0",
     "'\ud800'", "x = " + "9" * 5_000],
)  # fmt: skip
async def test_programs_that_hurt_parsers(code: str) -> None:
    """Each is judged, by a process that may die of it; the event loop runs on, and the next check is right."""
    checker = PythonChecker()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)

    watching = asyncio.create_task(watch())
    try:
        result = await checker.check(code)
        assert not result.valid
        assert result.diagnostics[0].message
        assert (await checker.check("x = 1")).valid
    finally:
        watching.cancel()
        await checker.aclose()
    # A parser that held the interpreter's lock would have kept the loop for as long as it took.
    assert longest < 0.25


async def test_a_large_valid_program() -> None:
    """Two mebibytes of the densest program are valid; more is refused in words."""
    checker = PythonChecker()
    assert (await checker.check("a\n" * 2**20)).valid
    with pytest.raises(InvalidRequestError, match="2,097,152"):
        await checker.check("a\n" * 2**20 + "b")
    await checker.aclose()


async def test_one_process_for_many_checks() -> None:
    """It starts with the first check, serves a thousand, survives a crash, and ends with close."""
    process = psutil.Process()
    before = {child.pid for child in process.children()}
    checker = PythonChecker()
    results = await asyncio.gather(*(checker.check(f"x = {n}") for n in range(1_000)))
    assert all(results)
    (child,) = [child for child in process.children() if child.pid not in before]
    child.kill()
    child.wait()
    assert (await checker.check("x = 1")).valid
    await checker.aclose()
    await checker.aclose()
    assert {child.pid for child in process.children()} <= before


async def test_a_cancelled_check_ends_its_process() -> None:
    """Nothing is left of it, and others go on."""
    process = psutil.Process()
    before = {child.pid for child in process.children()}
    checker = PythonChecker()
    check = asyncio.create_task(checker.check("a" + ".b" * 1_000_000))
    while {child.pid for child in process.children()} <= before:
        await asyncio.sleep(0.001)
    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check
    assert {child.pid for child in process.children()} <= before


async def test_arguments_are_checked() -> None:
    """Before anything is sent or started."""
    async with manager_for(URL) as manager:
        runtime = await manager.get_runtime("js")
        for arguments, words in (
            ({"where": "here"}, "where must be"),
            ({"where": None}, "where must be"),
            ({"where": "local"}, "only Python"),
        ):
            with pytest.raises(InvalidRequestError, match=words):
                await runtime.validate_code("1", **arguments)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="must be a str"):
            await runtime.validate_code(b"1")  # type: ignore[arg-type]
    with pytest.raises(RuntimeClosedError):
        await runtime.validate_code("1")
