"""The envelope: through servers that damage everything, results are those of a local interpreter."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig
from faasrt.languages import Language
from faasrt.protocol.envelope import WHOLE_PROGRAM, wrap
from faasrt.protocol.frames import take_frames
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.request import RunRequest
from faasrt.protocol.return_val import take_return_val
from support.doubles import doubles
from support.helpers import manager_at
from support.interpreters import Ending, recorded_programs, run_here
from support.programs import JS_TRICKS, PROGRAMS, PYTHON_TRICKS

pytestmark = pytest.mark.asyncio(loop_scope="session")
PLACES = ["doubles", "embedded", "embedded, enveloped"]


async def at_the_doubles(code: str, language: str, **options: Any) -> ExecutionResult:
    async with doubles() as (manager, _, _):
        return await manager.run_code(code, language, **options)


def places_in(stack: str) -> list[str]:
    """The user's own places in a traceback or stack."""
    return re.findall(r"main\.[jt]s:\d+:\d+|main\.py\", line \d+, in .*", stack)


def check(result: ExecutionResult, ending: Ending, code: str, language: str, *, same_python: bool) -> None:
    """Hold a result against what the interpreter itself gives."""
    stdout, ret_val = ending.stdout, ending.ret_val
    if re.search("(def|function) return_val", code):
        stdout, ret_val, _ = take_return_val(stdout, Language.parse(language))
    assert (result.stdout, result.ret_val, result.exit_code) == (stdout, ret_val, ending.exit_code)
    assert result.ok is (ending.exit_code == 0)
    if "Exception in thread" in ending.stderr and same_python:
        # The hook of threads reads the file, which is none here, and shows no line of it.
        assert places_in(result.stderr) == places_in(ending.stderr)
    elif result.ok or result.error is None or (language == "python" and same_python):
        assert result.stderr == ending.stderr
    elif language == "python":
        # Pythons of other versions draw other underlines.
        assert places_in(result.stderr) == places_in(ending.stderr)
        assert result.stderr.splitlines()[-1:] == ending.stderr.splitlines()[-1:]
    elif result.error.name != "Exit":
        assert result.error.message in ending.stderr
        assert sorted(places_in(result.stderr)) == sorted(places_in(ending.stderr))


@pytest.mark.parametrize("place", PLACES)
async def test_recorded_programs(place: str, local: RuntimeManager) -> None:
    """Each program that was sent to the reference servers ends as it does in its own interpreter."""
    programs = recorded_programs()
    assert len(programs) == 47
    async with manager_at(place, local) as manager:
        for case, code, language in programs:
            if "infinite loop" in case:
                result = await manager.run_code(code, language, timeout_ms=1_000)
                assert (result.outcome, result.stdout) == (Outcome.TIMEOUT, ""), case
                continue
            result = await manager.run_code(code, language, timeout_ms=10_000)
            if "environment" in case and place != "doubles":
                assert result.error is not None
                assert result.error.name == "NotCapable"
                continue
            ending = await asyncio.to_thread(run_here, code, language)
            try:
                check(result, ending, code, language, same_python=place == "doubles")
            except AssertionError as error:
                raise AssertionError(f"{case} at {place}: {result} is not {ending}") from error


@pytest.mark.parametrize("language", PROGRAMS)
async def test_programs_of_many_kinds(language: str) -> None:
    """Streams, exceptions, exits, threads, timers, modules: all as in the interpreter itself."""
    async with doubles() as (manager, _, _):
        for code in PROGRAMS[language]:
            result = await manager.run_code(code, language, timeout_ms=10_000)
            ending = await asyncio.to_thread(run_here, code, language)
            try:
                check(result, ending, code, language, same_python=True)
            except AssertionError as error:
                raise AssertionError(f"{code!r}: {result} is not {ending}") from error


LARGE = ["x" * 1_000_000, "\0" * 1_000_000, "\n" * 1_000_000, "é\r\n" * 250_000, '"\\' * 500_000, "{'a': 1}" * 100_000]


@pytest.mark.parametrize("language", ["python", "javascript"])
@pytest.mark.parametrize("place", ["doubles", "embedded, enveloped"])
async def test_a_megabyte_comes_back(language: str, place: str, local: RuntimeManager) -> None:
    """A stream within the limit is whole, also where its escapes would be six times as long."""
    async with manager_at(place, local) as manager:
        for text in LARGE:
            if language == "python":
                code = f"t = {text[:8]!r} * {len(text) // 8}\nprint(t, end='')\nreturn_val(t)"
            else:
                code = f"const t = {json.dumps(text[:8])}.repeat({len(text) // 8}); console.log(t); return_val(t);"
            result = await manager.run_code(code, language)
            expected = text[:8] * (len(text) // 8)
            assert result.outcome is Outcome.OK
            assert not result.truncated
            assert result.stdout.removesuffix("" if language == "python" else "\n") == expected
            assert result.ret_val == expected


@pytest.mark.parametrize("language", ["python", "javascript"])
async def test_streams_are_cut_inside(language: str) -> None:
    """Head and tail stay, a marker says how much is gone, and more than twice the limit ends the program."""
    async with doubles(sandbox=SandboxConfig(max_output_bytes=10_000)) as (manager, _, _):
        programs = {
            "python": ["print('a' * 6000 + 'b' * 6000)", "while True:\n    print('c' * 100)"],
            "javascript": [
                "console.log('a'.repeat(6000) + 'b'.repeat(6000))",
                "while (true) console.log('c'.repeat(100));",
            ],
        }[language]
        cut = await manager.run_code(programs[0], language)
        assert (cut.outcome, cut.truncated) == (Outcome.OK, {"stdout"})
        assert cut.stdout.startswith("aaaa")
        assert cut.stdout.endswith("bbb\n")
        assert "bytes cut" in cut.stdout
        assert len(cut.stdout) <= 10_000
        flood = await manager.run_code(programs[1], language)
        assert (flood.outcome, flood.truncated) == (Outcome.OUTPUT_LIMIT, {"stdout"})


async def test_three_full_streams_fit() -> None:
    """Where the frame cannot hold everything, streams are cut further, and it is said."""
    for language, code in {
        "python": "import sys\nt = '\\0' * 900_000\nprint(t)\nprint(t, file=sys.stderr)\nreturn_val(t)",
        "javascript": "const t = '\\0'.repeat(900_000); console.log(t); console.error(t); return_val(t);",
    }.items():
        result = await at_the_doubles(code, language)
        assert result.outcome is Outcome.OK
        assert result.truncated
        for name in ("stdout", "stderr", "ret_val"):
            text = getattr(result, name)
            assert len(text) > 100_000
            assert ("bytes cut" in text) is (name in result.truncated)


@pytest.mark.parametrize(
    ("language", "tricks"), [("python", PYTHON_TRICKS), ("javascript", JS_TRICKS)], ids=["python", "javascript"]
)
async def test_tricks_are_told_honestly(language: str, tricks: list[tuple[str, str, Outcome | None]]) -> None:
    """Whatever a program does to itself and to us, its verdict is what happened, and the next program runs."""
    async with doubles() as (manager, python, js):
        for name, code, outcome in tricks:
            result = await manager.run_code(code, language, timeout_ms=1_000)
            assert outcome in (None, result.outcome), f"{name}: {result}"
        assert (await manager.run_code("1", language)).ok
        assert python.running == js.running == 0


async def test_output_survives_a_hard_exit() -> None:
    """The output before os._exit comes back, with the exit code."""
    result = await at_the_doubles("import os\nprint('said')\nos._exit(4)", "python")
    assert (result.outcome, result.stdout, result.exit_code) == (Outcome.CRASHED, "said\n", 4)


async def test_eight_endless_loops() -> None:
    """All are ended from inside, so the ninth program finds a slot on a server that never ends anything."""
    async with doubles() as (manager, python, _):
        loops = (manager.run_code("print('on')\nwhile True: pass", "python", timeout_ms=500) for _ in range(8))
        results = await asyncio.gather(*loops)
        assert {result.outcome for result in results} == {Outcome.TIMEOUT}
        assert {result.stdout for result in results} == {"on\n"}
        assert (await manager.run_code("print(9)", "python")).stdout == "9\n"
        assert (python.executions, python.running) == (9, 0)


async def test_never_sends_plain_requests() -> None:
    """envelope="never" gives what the server gives."""
    async with doubles(envelope="never") as (manager, _, _):
        assert (await manager.run_code("print('a')\nprint('b')", "python")).stdout == "ab"


async def test_the_guard_counts_events_where_nothing_else_is_there(local: RuntimeManager) -> None:
    """WASI has neither signals nor Pyodide's buffer: there sys.monitoring ends the loop."""
    for loop in (
        "while True: pass",
        "def f(): pass\nfor _ in iter(int, 1): f()",
        "n = 0\nfor n in iter(int, 1): n += 1",
    ):
        run = RunRequest.checked(Language.PYTHON, f"print('on')\n{loop}", 200, SandboxConfig(), None, "normal")
        wrapped = wrap(run, WHOLE_PROGRAM, EndpointProfile(), "abc", max_output_bytes=1_000)
        result = await local.run_code(wrapped, "python", timeout_ms=10_000)
        record = take_frames({"stdout": result.stdout}, "abc", 1_000)[0].records[0]
        assert (record.outcome, record.texts["stdout"]) == (Outcome.TIMEOUT, "on\n")
