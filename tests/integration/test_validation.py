"""The local check of Python syntax: right diagnostics, in a process that may crash."""

from __future__ import annotations

import asyncio
import pickle
import re
import subprocess
import sys
import time
from asyncio.subprocess import Process
from pathlib import Path

import psutil
import pytest

from faasrt import InvalidRequestError, Outcome, RuntimeClosedError, RuntimeManager, ServerError
from faasrt.client import syntax
from faasrt.client.syntax import PythonChecker
from support.cli import faasrt
from support.helpers import manager_for
from support.served import until
from support.tables import block

URL = "http://127.0.0.1:1"  # no server listens here, because a local check sends no request


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("print('(')", None),
        (
            block("""
                # don't
                x = '''"'''
            """),
            None,
        ),
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
async def test_diagnostics_of_local_checks(code: str, place: tuple[int, int] | None) -> None:
    """Code is valid if Python can parse it. A diagnostic has a line and a column, both from 1. No code runs."""
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
    ["-" * 60_000 + "1", "-" * 2_000_000 + "1", "a" + ".b" * 300_000, "[]" + "[0]" * 150_000,
     "lambda:" * 50_000 + "1", "1+" * 300_000 + "1", "f'{" * 60_000, "not " * 400_000 + "1", "if 1:" * 30_000, "\0",
     "'\ud800'", "x = " + "9" * 5_000],
)  # fmt: skip
async def test_programs_that_crash_or_exhaust_the_parser(code: str) -> None:
    """Such programs are invalid. Only the process of the checker may crash, and the next check works."""
    checker = PythonChecker()
    before_s = time.thread_time()
    result = await checker.check(code)
    assert not result.valid
    assert result.diagnostics[0].message
    assert (await checker.check("x = 1")).valid
    await checker.aclose()
    # A parser in this process would have used seconds of its CPU, and kept the event loop for as long.
    assert time.thread_time() - before_s < 0.25


async def test_largest_program_that_can_be_checked() -> None:
    """A program of 2 MiB is checked. A larger one is an InvalidRequestError."""
    checker = PythonChecker()
    assert (await checker.check("#\n" * 2**20)).valid
    with pytest.raises(InvalidRequestError, match="2,097,152"):
        await checker.check("#\n" * 2**20 + "b")
    await checker.aclose()


async def test_one_process_for_many_checks() -> None:
    """One process runs a thousand checks. It is replaced if it is killed, and ends when the checker closes."""
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


async def test_two_processes_at_once_for_many_large_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may use much memory, so the others wait. Small programs do not wait for them."""
    counts, may_end = [0], asyncio.Event()
    start, end = syntax._start, syntax._end

    async def counted_start() -> Process:
        counts.append(counts[-1] + 1)
        return await start()

    async def counted_end(process: Process) -> None:
        await may_end.wait()
        await end(process)
        counts.append(counts[-1] - 1)

    monkeypatch.setattr(syntax, "_start", counted_start)
    monkeypatch.setattr(syntax, "_end", counted_end)
    checker = PythonChecker()
    checks = [asyncio.create_task(checker.check(f"x = {n}\n" + "#" * 100_000)) for n in range(20)]
    await until(lambda: counts[-1] == 2)
    assert (await checker.check("x = 1")).valid
    assert counts[-1] == 3
    may_end.set()
    assert all(await asyncio.gather(*checks))
    await checker.aclose()
    assert (max(counts), counts[-1]) == (3, 0)


async def test_a_cancelled_check_ends_its_process() -> None:
    """No process remains."""
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


async def test_wrong_arguments_are_refused() -> None:
    """The error is raised before a request is sent or a process is started."""
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


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("\ufeffx=1", None),
        ("\ufeff", None),
        ("\ufeff# coding: latin-1\nx = 'é'", None),
        ("\ufeffx = (", (1, 5)),
        ("\ufeffdef f(:", (1, 7)),
        ("\ufeffx = 1\n  y = 2", (2, 2)),
        ("\ufeff\ufeffx=1", (1, 1)),
        ("x\ufeff=1", (1, 2)),
        ("x=1\ufeff", (1, 4)),
    ],
)
async def test_a_byte_order_mark(code: str, place: tuple[int, int] | None, local: RuntimeManager) -> None:
    """One byte order mark at the beginning is ignored by the local check, the FaaS and the interpreter."""
    async with manager_for(URL) as manager:
        results = [await manager.validate_code(code, "python", where="local")]
    results.append(await local.validate_code(code, "python", where="remote"))
    for result in results:
        assert result.valid is (place is None)
        checker = re.match(r"CPython (\d+)\.(\d+)\.(\d+)", result.checked_by)
        assert checker is not None
        is_old = code == "x=1\ufeff" and tuple(map(int, checker.groups())) < (3, 11, 4)
        expected = [] if place is None else [(1, 3)] if is_old else [place]
        assert [(found.line, found.column) for found in result.diagnostics] == expected
    ran = await local.run_code(code, "python")
    assert ran.outcome is (Outcome.OK if place is None else Outcome.SYNTAX_ERROR)


@pytest.mark.asyncio(loop_scope="session")
async def test_python_is_checked_by_the_grammar_of_its_server(
    local: RuntimeManager, local_wasm: RuntimeManager
) -> None:
    """That of another version is asked. A local check accepts a `return` outside of a function, and servers do not."""
    assert not (await local.validate_code("return 1", "python", where="remote")).valid
    is_native = (await local.run_code("1", "python")).metadata["engine"] == "native"
    assert (await local.validate_code("return 1", "python")).valid is is_native  # else the server has another version
    template = "print(t'{1}')"  # from Python 3.14 on
    result = await local_wasm.validate_code(template, "python")
    assert (result.valid, result.checked_by) == (True, (await local_wasm.run_code("1", "python")).metadata["runtime"])
    assert not (await local_wasm.validate_code("return 1", "python")).valid
    assert (await local_wasm.validate_code(template, "python", where="local")).valid is (sys.version_info >= (3, 14))


def interpreter(folder: Path, script: str) -> str:
    """Return the path of a shell script that replaces the interpreter. PYTHON in it calls the real one."""
    path = folder / "python"
    path.write_text("#!/bin/sh\n" + script.replace("PYTHON", f'exec "{sys.executable}" "$@"'))
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo \"ModuleNotFoundError: No module named 'resource'\" >&2; exit 1", "No module named 'resource'"),
        ("exit 0", "exit code 0: no reason given;"),
        ("head -c 1000 /dev/zero | tr '\\0' x >&2; exit 1", "exit code 1: x{300};"),
        ("kill -KILL $$", "signal 9"),
        ("kill -SEGV $$", "signal 11"),
        ("ulimit -v 8000; PYTHON", "cannot start"),
        ("printf '\\001'; head -c 5 > /dev/null; kill -KILL $$", "signal 9"),
        ("printf '\\001'; head -c 5 > /dev/null; exit 1", "exit code 1"),
    ],
)
async def test_failure_of_the_process_is_a_server_error(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that does not start or is killed says nothing about the code. The next check works."""
    checker = PythonChecker()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", interpreter(tmp_path, script))
        for code in ("x = 1", "x = 1\n" * 20_000):
            with pytest.raises(ServerError, match=words) as caught:
                await checker.check(code)
            assert "where='remote'" in str(caught.value)
            assert (caught.value.sent, caught.value.endpoint, caught.value.attempts) == ("no", "", 0)
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert (await checker.check("x = 1")).valid
    await checker.aclose()


@pytest.mark.parametrize("executable", ["", None, "/nowhere/python", "/"])
async def test_missing_interpreter_is_a_server_error(executable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that the process cannot start."""
    checker = PythonChecker()
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ServerError, match="cannot start"):
        await checker.check("x = 1")


async def test_code_that_crashes_the_parser_twice_is_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that overflows the stack of two processes is invalid. Other programs are still checked."""
    checker = PythonChecker()
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, "ulimit -s 256; PYTHON"))
    for code in ("-" * 5_000 + "1", "-" * 5_000 + "1 #" + " " * 100_000):
        result = await checker.check(code)
        assert [found.message for found in result.diagnostics] == ["the program crashes Python's parser"]
        assert (await checker.check("x = 1")).valid
    await checker.aclose()


@pytest.mark.parametrize(("kib", "suffices"), [(600_000, True), (100_000, False)])
async def test_low_memory_limit(kib: int, suffices: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a low limit of the system, small programs are checked. If memory runs out, this is a ServerError."""
    checker = PythonChecker()
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, f"ulimit -v {kib}; PYTHON"))
    assert (await checker.check("x = 1")).valid
    assert not (await checker.check("x = (")).valid
    if suffices:
        assert (await checker.check("a\n" * 2**15)).valid
    else:
        with pytest.raises(ServerError, match="too little memory"):
            await checker.check("a\n" * 2**20)
    assert (await checker.check("x = 1")).valid
    await checker.aclose()


EXHAUSTED = """
import asyncio, resource, faasrt
from faasrt.client.syntax import PythonChecker
async def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    checker = PythonChecker()
    resource.setrlimit(resource.RLIMIT_NOFILE, (8, hard))
    try:
        await checker.check("x = 1")
    except faasrt.ServerError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print((await checker.check("x = 1")).valid)
    await checker.aclose()
asyncio.run(main())
"""


def test_missing_file_descriptors_are_a_server_error() -> None:
    """The message contains the error of the system, and the next check works."""
    argv = [sys.executable, "-W", "error", "-c", EXHAUSTED]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot start: [Errno 24] Too many open files" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1:] == ["True"]


def test_faasrt_validate_exits_with_3_without_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    code, stdout, stderr = faasrt("validate", "-l", "py", "-c", "x = 1", "--url", URL)
    assert (code, stdout) == (3, "")
    assert stderr.startswith("faasrt: ServerError: the process that checks Python cannot start: ")
