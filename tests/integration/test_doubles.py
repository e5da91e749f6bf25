"""The doubles of the reference servers behave like recordings of the real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from support.doubles import JsFaas, PythonFaas
from support.helpers import Clock
from support.package import WIRE
from support.served import at_work_in, is_gone, until
from support.tables import block

Double = PythonFaas | JsFaas
DOUBLES: dict[str, Callable[..., Double]] = {"python": PythonFaas, "js": JsFaas}
# js-faas prints this report when the script has run. If the process then crashes, the report is its stdout.
REPORT = '{{"stdout":"{}\\n","stderr":"","ret_val":""}}\n'
LATE = "error: Uncaught (in promise) Error: late"
FOREVER = {"python": "while True: pass", "js": "while (true) {}"}


def recorded() -> list[Any]:
    return [
        pytest.param(language, record, id=f"{language}: {record['case']}")
        for language in DOUBLES
        for record in map(json.loads, (WIRE / f"{language}-faas.jsonl").read_text().splitlines())
    ]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def python() -> AsyncIterator[PythonFaas]:
    async with PythonFaas() as double:
        yield double


@pytest.fixture
async def js() -> AsyncIterator[JsFaas]:
    async with JsFaas() as double:
        yield double


async def post(http: aiohttp.ClientSession, double: Double, body: str | bytes) -> tuple[int, Any]:
    async with http.post(f"{double.url}/run_code", data=body) as response:
        return response.status, await response.json()


async def run(http: aiohttp.ClientSession, double: Double, code: str, timeout: Any = 10_000) -> Any:
    language = "python" if isinstance(double, PythonFaas) else "js"
    body = json.dumps({"language": language, "code": code, "timeout": timeout})
    status, answer = await post(http, double, body)
    assert status == 200
    return answer


async def output(http: aiohttp.ClientSession, double: Double, code: str, timeout: Any = 10_000) -> tuple[str, ...]:
    answer = await run(http, double, code, timeout)
    return tuple(answer["output"][stream] for stream in ("stdout", "stderr", "ret_val"))


def expanded(response: Any) -> Any:
    """Return a recorded answer with its full output, if the recording only describes it."""
    if isinstance(response, dict) and "output" in response:
        described = re.fullmatch(r"<(\d+) characters, all 'x' but for line ends>", response["output"]["stdout"])
        if described:
            response["output"]["stdout"] = "x" * 100_000 + "\n" * (int(described[1]) - 100_000)
    return response


def comparable(response: Any, record: dict[str, Any]) -> Any:
    """Check the format of times, counts and paths in an answer, and replace them, because they always differ."""
    if not isinstance(response, dict):
        return response
    if "metadata" in response:
        duration = response["metadata"]["duration"]
        assert isinstance(duration, int)
        if record["case"] == "infinite loop, timeout 1000":
            assert duration >= 1_000
        response["metadata"]["duration"] = "a duration"
        stderr = response["output"]["stderr"]
        response["output"]["stderr"] = re.sub(r"file:///\S+/temp\.js", "file:///<workspace>/temp.js", stderr)
    for count in {"execution_count", "uptime_seconds"} & response.keys():
        assert isinstance(response[count], int)
        response[count] = "a count"
    if "timestamp" in response:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", response["timestamp"])
        response["timestamp"] = "a time"
    return response


@pytest.mark.parametrize(("language", "record"), recorded())
async def test_recorded_answers(language: str, record: dict[str, Any], http: aiohttp.ClientSession) -> None:
    """The double returns the same status and answer as the real server."""
    async with DOUBLES[language]() as double:
        if record["case"].startswith("GET "):
            async with http.get(double.url + record["case"].removeprefix("GET ")) as response:
                status, text = response.status, await response.text()
                answer = json.loads(text) if response.content_type == "application/json" else text
        else:
            body = record["raw_request"] if "raw_request" in record else json.dumps(record["request"])
            status, answer = await post(http, double, body)
    assert status == record["status"]
    assert comparable(answer, record) == comparable(expanded(record["response"]), record)


@pytest.mark.parametrize(
    ("printed", "ret_val"),
    [
        ("0.50", "0.5"),
        (" 1.0\t", "1"),
        ("1e-7", "1e-7"),
        ("0.000001", "0.000001"),
        ("1e21", "1e+21"),
        ("12345678901234567e3", "12345678901234567000"),
        ("9007199254740993", "9007199254740992"),
        ("1e999", "null"),
        ('{"b": [1, true, null], "2": "é\\u0000", "1": {}}', '{"1":{},"2":"é\\u0000","b":[1,true,null]}'),
        ("NaN", "NaN"),
        ("{not json}", "{not json}"),
    ],
)
async def test_python_reformats_the_json_of_return_values(
    python: PythonFaas, http: aiohttp.ClientSession, printed: str, ret_val: str
) -> None:
    """The text between the markers is parsed and written by JavaScript, which changes numbers and the order of keys."""
    markers = ("__COZE_RETURN_VAL_START__", "__COZE_RETURN_VAL_END__")
    code = f"print({markers[0]!r})\nprint({printed!r})\nprint({markers[1]!r})"
    assert await output(http, python, code) == ("", "", ret_val)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            block("""
                import os, sys
                print(1)
                os.write(1, b'2')
                sys.stdout.write('3');
            """),
            ("123", "", ""),
        ),
        (
            block("""
                import subprocess
                subprocess.run(['echo', 'child']);
            """),
            ("child", "", ""),
        ),
        ("print('a {1} b {2} c {{3}} d')", ("a  b  c {} d", "", "{1}")),
        (
            block("""
                print('{a}')
                'b'
            """),
            ("", "", "b"),
        ),
        (
            block("""
                import asyncio
                async def f():
                    print('f')
                asyncio.run(f())
                await f()
                asyncio.run(f())
            """),
            ("fff", "", ""),
        ),
        (
            block("""
                import asyncio
                await asyncio.sleep(0, 'value')
            """),
            ("", "", "value"),
        ),
        ("print(__name__)", ("__main__", "", "")),
        ("'shown';", ("", "", "")),
        (
            block("""
                s = "a\tb"
                print(s)
            """),
            ("a\tb", "", ""),
        ),
        (
            block("""
                import traceback
                try:
                    1 / 0
                except ZeroDivisionError:
                    print(traceback.format_exc())
            """),
            (
                'Traceback (most recent call last):  File "<exec>", line 12, in <module>'
                "ZeroDivisionError: division by zero",
                "",
                "",
            ),
        ),
    ],
)
async def test_python_programs(
    python: PythonFaas, http: aiohttp.ClientSession, code: str, expected: tuple[str, ...]
) -> None:
    """Ways to write to stdout, braces in the output, a last expression, top-level await and asyncio.run."""
    answer = await run(http, python, code)
    assert tuple(answer["output"].values()) == expected
    assert answer["metadata"]["status"] == "success"


@pytest.mark.parametrize(
    ("code", "stderr"),
    [
        (
            block("""
                import os
                print(1)
                os.write(2, b'last words')
                os._exit(0)
            """),
            "last words",
        ),
        (
            block("""
                import os
                print(1)
                os.kill(os.getpid(), 9)
            """),
            "",
        ),
        (
            block("""
                import ctypes
                print(1)
                ctypes.string_at(0)
            """),
            "",
        ),
        (
            block("""
                import sys
                def f():
                    sys.exit('enough')
                f()
            """),
            '  File "<exec>", line 13, in <module>\n  File "<exec>", line 12, in f\nSystemExit: enough\n',
        ),
        (
            block("""
                print(1)
                raise KeyboardInterrupt
            """),
            "KeyboardInterrupt",
        ),
        (
            block("""
                import asyncio
                async def f():
                    raise SystemExit(5)
                asyncio.create_task(f())
                await asyncio.sleep(9)
            """),
            "SystemExit: 5",
        ),
    ],
)
async def test_python_crashes_lose_stdout(
    python: PythonFaas, http: aiohttp.ClientSession, code: str, stderr: str
) -> None:
    """If the process of a program crashes, its stdout is lost, and its stderr is kept."""
    answer = await run(http, python, code)
    assert (answer["output"]["stdout"], answer["output"]["ret_val"]) == ("", "")
    assert stderr in answer["output"]["stderr"]
    if not stderr:
        assert answer["output"]["stderr"] == ""
    assert (answer["metadata"]["status"], answer["metadata"]["exit_code"]) == ("error", 1)


async def test_python_does_not_stop_programs_at_their_timeout(http: aiohttp.ClientSession, clock: Clock) -> None:
    """Eight endless programs occupy all slots until the double closes. A ninth one waits, and `/health` is healthy."""
    code = "import time\nwhile True: time.sleep(1)"
    async with PythonFaas() as double:
        loops = [asyncio.create_task(run(http, double, code, timeout=100)) for _ in range(8)]
        await until(lambda: double.running == 8)
        ninth = asyncio.create_task(run(http, double, "print(1)", timeout=100))
        await until(double.slots.locked)
        clock.advance(60)
        async with http.get(f"{double.url}/health") as response:
            assert (await response.json())["status"] == "healthy"
        assert (double.executions, double.running) == (8, 8)
        assert not any(task.done() for task in (*loops, ninth))
        folder = double.folder
        await until(lambda: len(at_work_in(folder, psutil.Process().children(recursive=True))) == 8)
        processes = at_work_in(folder, psutil.Process().children(recursive=True))
    results = await asyncio.gather(*loops, ninth, return_exceptions=True)
    assert all(isinstance(result, aiohttp.ClientConnectionError) for result in results)
    assert not any(process.is_running() for process in processes)
    assert (double.running, folder.exists()) == (0, False)


@pytest.mark.parametrize(
    ("interpreter", "status", "error"),
    [("/nonexistent", 500, "Execution failed"), ("/no/timeout", 408, "Execution timeout")],
)
async def test_python_failures_to_start_a_program(
    python: PythonFaas, http: aiohttp.ClientSession, interpreter: str, status: int, error: str
) -> None:
    """The status is 408 if the message contains the word "timeout", and 500 otherwise."""
    python.interpreter = interpreter
    assert await post(http, python, '{"language": "py", "code": "1"}') == (
        status,
        {"error": error, "details": f"[Errno 2] No such file or directory: '{interpreter}'"},
    )
    assert python.executions == 0


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("console.info('a', 1, null); console.debug('lost')", ("a 1 null\n", "", "")),
        ("console.log('[1]'); console.log('null'); console.log('{')", ("[1]\nnull\n{\n", "", "")),
        ("console.log('{}'); console.log('x'); console.log(' {\"a\": 0.50} ')", ("{}\nx", "", ' {"a": 0.50} ')),
        ('setTimeout(() => console.log(\'{"stdout": "late"}\'), 10)', ("", "", "")),
        ("console.log('early'); Promise.reject(new Error('late'))", (REPORT.format("early"), LATE, "")),
        ("undeclared = 1", ("", "ReferenceError: undeclared is not defined", "")),
        ("throw null", ("", "null\n", "")),
        ("throw {a: 1}", ("", "[object Object]\n", "")),
        ("console.log(1); setInterval(() => {}, 10)", (REPORT.format("1"), "", "")),
        ("console.log(1); setTimeout(() => Deno.exit(3))", (REPORT.format("1"), "", "")),
        ("console.log(1); setTimeout(() => Deno.kill(Deno.pid, 'SIGKILL'))", (REPORT.format("1"), "", "")),
        ("console.log(1); Deno.kill(Deno.pid, 'SIGKILL')", ("", "", "")),
    ],
)
async def test_js_programs(js: JsFaas, http: aiohttp.ClientSession, code: str, expected: tuple[str, ...]) -> None:
    """Output that is captured, output that is lost, and output that becomes the return value."""
    stdout, stderr, ret_val = await output(http, js, code, timeout=3_000 if "setInterval" in code else 30_000)
    assert (stdout, re.split("\n    at|\n  \\(new Function", stderr)[0], ret_val) == expected


async def test_js_uses_the_last_object_on_stdout_as_report(js: JsFaas, http: aiohttp.ClientSession) -> None:
    """If a program prints a JSON object after the report of the wrapper, the server returns it as the answer."""
    forged = json.dumps({"stdout": "forged", "ret_val": "42"}) + "\n[1]\nnot json\n"
    code = f"""
        console.log("real");
        addEventListener("unload", () => Deno.stdout.writeSync(new TextEncoder().encode({json.dumps(forged)})));
    """
    assert await output(http, js, code) == ("forged", "", "42")


async def test_js_stops_loops_at_their_timeout(js: JsFaas, http: aiohttp.ClientSession) -> None:
    """The answer is an empty success. Only its duration differs from that of a program without output."""
    answer = await run(http, js, "console.log('lost'); " + FOREVER["js"], timeout=300)
    assert answer["output"] == {"stdout": "", "stderr": "", "ret_val": ""}
    assert answer["metadata"].pop("duration") >= 300
    assert answer["metadata"] == {"language": "javascript", "status": "success"}
    assert js.running == 0


async def test_js_failures_to_start_a_program(js: JsFaas, http: aiohttp.ClientSession) -> None:
    js.interpreter = "/nonexistent"
    status, answer = await post(http, js, '{"language": "TypeScript", "code": "1"}')
    assert (status, answer["error"]) == (500, "Internal server error")


async def test_js_version_of_helm(http: aiohttp.ClientSession) -> None:
    """`/health` has the runtime and the version of Deno, the status is "completed", and failures have an output."""
    async with JsFaas(version="helm") as helm:
        async with http.get(f"{helm.url}/health") as response:
            health = await response.json()
        assert (health["runtime"], health["version"], health["language"]) == ("deno", "2.9.8", "javascript")
        answer = await run(http, helm, "console.log(1)")
        assert answer["metadata"].pop("duration") > 0
        assert answer["metadata"] == {"language": "javascript", "status": "completed"}
        helm.interpreter = "/nonexistent"
        status, answer = await post(http, helm, '{"language": "js", "code": "1"}')
        assert (status, answer["error"], sorted(answer)) == (500, "Execution failed", ["details", "error", "output"])


@pytest.mark.parametrize("double", [PythonFaas, JsFaas])
async def test_health_is_optional(double: type[Double], http: aiohttp.ClientSession) -> None:
    """With `has_health=False`, the answer to `/health` is a 404."""
    async with double(has_health=False) as server, http.get(f"{server.url}/health") as response:
        assert response.status == 404


@pytest.mark.parametrize("language", DOUBLES)
async def test_programs_continue_after_their_client_disconnects(
    language: str, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """The program also keeps its slot."""
    go_on, mark = tmp_path / "go_on", tmp_path / "mark"
    codes = {
        "python": f"import os, time\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.01)\n"
        f"open({str(mark)!r}, 'w').close()",
        "js": f"while (true) try {{ Deno.statSync({json.dumps(str(go_on))}); break }} catch {{}}\n"
        f"Deno.writeTextFileSync({json.dumps(str(mark))}, '')",
    }
    async with DOUBLES[language](slots=1) as double:
        task = asyncio.create_task(run(http, double, codes[language]))
        await until(lambda: double.running == 1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert double.running == 1
        assert not mark.exists()
        go_on.touch()
        await run(http, double, "1;")
        assert mark.exists()
        assert (double.executions, double.running) == (2, 0)


@pytest.mark.parametrize("language", DOUBLES)
async def test_start_up_holds_the_slot(language: str, http: aiohttp.ClientSession) -> None:
    """With one slot, the simulated start-ups run one after the other."""
    async with DOUBLES[language](slots=1, start_up_s=0.05) as double:
        answers = await asyncio.gather(*(run(http, double, "1;") for _ in range(2)))
        assert all(answer["metadata"]["duration"] >= 50 for answer in answers)
        assert double.executions == 2
    async with DOUBLES[language](slots=1, start_up_s=600) as double:
        tasks = [asyncio.create_task(run(http, double, "1;")) for _ in range(2)]
        await until(double.slots.locked)
        assert (double.executions, double.running) == (0, 0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, aiohttp.ClientConnectionError) for result in results)
    assert double.executions == 0


@pytest.mark.parametrize("language", DOUBLES)
@pytest.mark.parametrize("ending", ["by itself", "by closing"])
async def test_no_process_and_no_file_is_left(
    language: str, ending: str, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """The child processes of a program are killed when it ends, or when the double closes."""
    mark = tmp_path / "mark"
    left: list[psutil.Process] = []
    then = FOREVER[language] if ending == "by closing" else ""
    shell = ["-c", f"echo $$ > {mark}.tmp; mv {mark}.tmp {mark}; sleep 100"]
    codes = {
        "python": f"import os, subprocess, time\nsubprocess.Popen({['sh', *shell]})\n"
        f"while not os.path.exists({str(mark)!r}): time.sleep(0.01)\n{then}",
        "js": f"new Deno.Command('sh', {{ args: {json.dumps(shell)} }}).spawn().unref();"
        f"while (true) try {{ Deno.statSync({json.dumps(str(mark))}); break }} catch {{}}\n{then}",
    }
    async with DOUBLES[language]() as double:
        task = asyncio.create_task(run(http, double, codes[language]))
        await until(mark.exists)
        with contextlib.suppress(psutil.NoSuchProcess):
            left = [psutil.Process(int(mark.read_text()))]
        if ending == "by itself":
            await task
            assert [path.name for path in double.folder.iterdir() if path.name != "deno"] == []
        folder = double.folder
    await asyncio.gather(task, return_exceptions=True)
    assert not folder.exists()
    await until(lambda: all(is_gone(process) for process in left))
