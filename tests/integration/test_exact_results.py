"""Outcomes, output and values are exact on the doubles and the embedded FaaS, even at limits and for unusual text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from faasrt import Outcome, RuntimeManager, SandboxConfig
from support.doubles import doubles
from support.helpers import manager_at
from support.programs import EXACT_JAVASCRIPT, EXACT_PYTHON
from support.tables import block, first_of

pytestmark = pytest.mark.asyncio(loop_scope="session")
PLACES = first_of(["doubles", "embedded", "embedded, enveloped"])
# Programs that need processes and threads, or results that only the envelope returns.
EXACT_PYTHON_ON_DOUBLES: dict[str, tuple[Outcome, str, str]] = {
    block("""
        from concurrent.futures import ThreadPoolExecutor
        ex = ThreadPoolExecutor(2)
        print(ex.submit(lambda: 5).result())
    """): (
        Outcome.OK,
        "5\n",
        "",
    ),
    block("""
        import os
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        print('ok')
    """): (
        Outcome.OK,
        "ok\n",
        "",
    ),
    block("""
        import os
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            print('parent')
    """): (Outcome.OK, "parent\n", ""),
    block("""
        import os
        print('x')
        os._exit(True)
    """): (Outcome.CRASHED, "x\n", ""),
    block("""
        import sys
        class W:
            def flush(self): raise RuntimeError
        print('x')
        sys.stdout = W()
    """): (Outcome.OK, "x\n", ""),
    block("""
        import os
        print('x', flush=True)
        os.close(1)
    """): (Outcome.OK, "x\n", ""),
    block("""
        import warnings
        warnings.warn('x')
    """): (Outcome.OK, "", "  warnings.warn('x')"),
}


@pytest.mark.parametrize("place", PLACES)
async def test_outcome_and_output_of_programs(place: str, local: RuntimeManager) -> None:
    """Outcome, stdout and stderr are the same at every place."""
    programs = [(code, "python", expected) for code, expected in EXACT_PYTHON.items()]
    programs += [(code, "js", expected) for code, expected in EXACT_JAVASCRIPT.items()]
    if place == "doubles":
        programs += [(code, "python", expected) for code, expected in EXACT_PYTHON_ON_DOUBLES.items()]
    async with manager_at(place, local) as manager:
        for code, language, (outcome, stdout, stderr) in programs:
            result = await manager.run_code(code, language)
            assert (result.outcome, result.stdout) == (outcome, stdout), (code, result)
            assert stderr in result.stderr, (code, result)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("language", ["python", "js"])
async def test_error_messages_of_one_megabyte_are_exact(place: str, language: str, local: RuntimeManager) -> None:
    """An error message is truncated only above `max_output_bytes`."""
    code = "raise ValueError('x' * 10**6)" if language == "python" else "throw new Error('x'.repeat(1e6));"
    async with manager_at(place, local) as manager:
        result = await manager.run_code(code, language)
        assert result.error is not None
        assert result.error.message == "x" * 10**6
        small = SandboxConfig(max_output_bytes=1_000)
        result = await manager.run_code(code, language, sandbox=small)
        assert result.outcome is Outcome.USER_ERROR
        assert result.error is not None
        assert len(result.error.message) <= 1_000


async def results_of(manager: RuntimeManager, language: str, code: str, cases: list[Any], **options: Any) -> list[Any]:
    runtime = await manager.get_runtime(language)
    results = await runtime.run_cases(code, "f", [(case,) for case in cases], **options)
    return [result.value if result.ok else str(result.outcome) for result in results]


@pytest.mark.parametrize("place", first_of(["doubles", "embedded"]))
@pytest.mark.parametrize("language", ["python", "js"])
async def test_progress_of_cases_does_not_count_as_output(place: str, language: str, local: RuntimeManager) -> None:
    """The progress frames of cases are not output of the program, so they do not count towards a small limit."""
    code = {
        "python": """
            import time
            def f(i):
                while i == 40: time.sleep(0.01)
                return [i] * 50
        """,
        "js": """
            const cell = new Int32Array(new SharedArrayBuffer(4));
            const f = (i) => { while (i === 40) Atomics.wait(cell, 0, 0, 10); return Array(50).fill(i); };
        """,
    }[language]
    async with manager_at(place, local) as manager:
        for limit in (1_000, 20_000):
            values = await results_of(
                manager,
                language,
                block(code),
                list(range(80)),
                timeout_ms=1_000,
                sandbox=SandboxConfig(max_output_bytes=limit),
            )
            assert values == ["TIMEOUT" if number == 40 else [number] * 50 for number in range(80)]


LARGE = {
    "python": """
        import sys, time
        print('d' * 900_000)
        def f(i):
            while i == 1: time.sleep(0.01)
            print('e' * 900_000, file=sys.stderr)
            return 'r' * 900_000
    """,
    "js": """
        const cell = new Int32Array(new SharedArrayBuffer(4));
        console.log('d'.repeat(900_000));
        const f = (i) => {
          while (i === 1) Atomics.wait(cell, 0, 0, 10);
          console.error('e'.repeat(900_000));
          return 'r'.repeat(900_000);
        };
    """,
}


@pytest.mark.parametrize("place", first_of(["doubles", "embedded"]))
@pytest.mark.parametrize("language", LARGE)
async def test_cases_with_large_output_and_values(place: str, language: str, local: RuntimeManager) -> None:
    """Each case has its own outcome and value, even if definitions and cases print almost as much as the limit."""
    async with manager_at(place, local) as manager:
        runtime = await manager.get_runtime(language)
        cases = [(number,) for number in range(3)]
        results = await runtime.run_cases(block(LARGE[language]), "f", cases, timeout_ms=4_000)
        assert [result.outcome for result in results] == ["OK", "TIMEOUT", "OK"]
        assert results[2].value == "r" * 900_000
        assert results[2].stderr.startswith("e" * 900_000)
        assert results[2].truncated == {"stdout"}
        assert results[2].stdout.startswith("ddd")
        assert len(results[2].stdout) < 8_300


async def test_large_output_of_definitions_is_sent_once() -> None:
    """200 cases share at most two executions, because the output of the definitions is not repeated for each case."""
    async with doubles() as (manager, python, js):
        for language, code in {
            "python": block("""
                print('d' * 900_000)
                def f(i): print(i); return i
            """),
            "js": "console.log('d'.repeat(900_000)); const f = (i) => { console.log(i); return i; };",
        }.items():
            assert await results_of(manager, language, code, list(range(200))) == list(range(200))
        assert python.executions <= 2
        assert js.executions <= 2


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            block("""
                def f(i):
                    if i == 1: raise SyntaxError(5)
                    return i
            """),
            [0, "USER_ERROR", 2, 3],
        ),
        (
            block("""
                import sys
                def f(i):
                    if i == 0: sys.settrace(lambda *a: 1 / 0)
                    return i
            """),
            [0, 1, 2, 3],
        ),
        (
            block("""
                import sys
                def f(i):
                    if i == 0: sys.modules.clear()
                    return i
            """),
            [0, 1, 2, 3],
        ),
        (
            block("""
                import os
                def f(i):
                    if i == 1: os.close(1); os.close(2)
                    return i
            """),
            [0, 1, 2, 3],
        ),
        (
            block("""
                import signal
                def f(i):
                    if i == 0: signal.signal(signal.SIGALRM, lambda *a: None)
                    if i == 2:
                        while True: pass
                    return i
            """),
            [0, 1, "TIMEOUT", 3],
        ),
    ],
)
async def test_cases_that_damage_the_interpreter(code: str, expected: list[Any]) -> None:
    """Other cases keep their results, and time limits still work."""
    async with doubles() as (manager, _, _):
        assert await results_of(manager, "python", code, list(range(4)), timeout_ms=500) == expected


async def test_isolated_cases_start_with_working_streams_and_prototypes() -> None:
    """The case before closed its streams or changed `Object.prototype`, which does not affect the next one."""
    async with doubles() as (manager, _, _):
        runtime = await manager.get_runtime("python")
        code = block("""
            import sys
            def f(i):
                print(i)
                sys.stdout.close()
                sys.stdout = None
                return i
        """)
        results = await runtime.run_cases(code, "f", [(1,), (2,)], isolate=True)
        assert [(result.value, result.stdout) for result in results] == [(1, "1\n"), (2, "2\n")]
        runtime = await manager.get_runtime("js")
        code = (
            "const f = (i) => { console.log(i); console.group('g'); console.log = null;"
            " Object.prototype.fields = { outcome: 'OK' }; Object.prototype.last = true; return i; };"
        )
        results = await runtime.run_cases(code, "f", [(1,), (2,)], isolate=True)
        assert [(result.value, result.stdout) for result in results] == [(1, "1\ng\n"), (2, "2\ng\n")]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "code",
    [
        block("""
            async def f(): pass
            kept = f()
        """),
        block("""
            import sys
            async def f(): pass
            def g():
                kept = f()
                sys.exit(1)
            g()
        """),
        block("""
            import warnings
            class A:
                def __del__(self): warnings.warn('gone', stacklevel=2)
            a = A()
        """),
        block("""
            import warnings
            warnings.warn('deep', stacklevel=2)
        """),
    ],
)
async def test_warnings_name_no_line_of_the_runner(place: str, code: str, local: RuntimeManager) -> None:
    """They name the place that the interpreter names when no code of a program runs."""
    async with manager_at(place, local) as manager:
        result = await manager.run_code(code, "python")
    assert result.stderr.startswith(("sys:1: ", "<sys>:0: ")), result


async def test_incomplete_characters_are_not_joined_across_cases() -> None:
    """If a case writes only some bytes of a character, bytes of the next case do not complete it."""
    code = "const f = (bytes) => { Deno.stdout.writeSync(new Uint8Array(bytes)); };"
    async with doubles() as (manager, _, _):
        runtime = await manager.get_runtime("js")
        results = await runtime.run_cases(code, "f", [([0xE2, 0x82],), ([0xAC],), ([0xE2, 0x82, 0xAC],)])
        assert [result.stdout for result in results] == ["\ufffd", "\ufffd", "€"]


async def test_syntax_errors_of_functions_do_not_mention_faasrt(local: RuntimeManager) -> None:
    """The error is the same as that of the program alone, without the code that faasrt appends to it."""
    async with doubles() as (manager, _, _):
        for place in (manager, local):
            runtime = await place.get_runtime("js")
            for code in ("function f(i) { return i }\nconst x =", "function f() {"):
                result = await runtime.call_function(code, "f")
                assert result.outcome is Outcome.SYNTAX_ERROR
                assert result.error is not None
                assert "faasrt" not in result.stderr + result.error.message
                assert (await place.run_code(code, "js")).error == result.error
            assert (await runtime.call_function("function name(i) { return i + 1 }", "name", [1])).value == 2


async def test_time_of_definitions_does_not_count_for_cases(local: RuntimeManager) -> None:
    """Definitions and a case take longer than the limit together."""
    code = block("""
        import time
        time.sleep(2.1)
        def f(i):
            time.sleep(2.1)
            return i
    """)
    assert await results_of(local, "python", code, [0], timeout_ms=4_000) == [0]


async def test_long_error_messages_do_not_split_cases() -> None:
    """An error message is truncated like a stream, so three cases still fit into one execution."""
    code = "const f = () => { throw new Error('😀'.repeat(15_000)); };"
    async with doubles(sandbox=SandboxConfig(max_output_bytes=1_000)) as (manager, _, js):
        runtime = await manager.get_runtime("js")
        results = await runtime.run_cases(code, "f", [(1,), (2,), (3,)])
        assert {result.outcome for result in results} == {Outcome.USER_ERROR}
        assert js.executions == 1


async def test_unusual_values_and_arguments() -> None:
    """A time zone is not valid as a value, large integers are refused for JavaScript, and Python normalizes names."""
    async with doubles() as (manager, _, _):
        python = await manager.get_runtime("python")
        zone = await python.call_function(
            block("""
                import datetime
                def f(): return datetime.timezone.utc
            """),
            "f",
        )
        assert zone.error is not None
        assert "value is of type timezone" in zone.error.message
        assert (await python.call_function("def \ufb01(): return 1", "\ufb01")).value == 1
        assert (await python.call_function("def f(n): return n", "f", [2**60])).value == 2**60
        js = await manager.get_runtime("js")
        with pytest.raises(ValueError, match="2\\*\\*53"):
            await js.call_function("const f = (n) => n;", "f", [[2**53 + 1]])
        assert json.loads((await js.call_function("const f = (n) => n;", "f", [2**53])).ret_val) == 2**53
