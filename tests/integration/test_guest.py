"""The guest programs in CPython and Deno, without a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import deno
import pytest

from benchmarks.verdicts import busy_processes
from faasrt import Outcome, SandboxConfig
from faasrt.inputs import ProgramInput
from faasrt.languages import Language
from faasrt.protocol.envelope import GuestJob, wrap
from faasrt.protocol.frames import GuestReport, take_frames
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Program
from support.doubles.python_faas import mangle
from support.tables import block

NONCE = "abc123"


def read(*streams: str, limit: int = 1_000) -> GuestReport:
    return take_frames({str(number): text for number, text in enumerate(streams)}, NONCE, limit)[0]


def wrapped(
    code: str, language: str, *, limit_ms: int, max_output_bytes: int, begin_within_ms: float = 0.0, **job: Any
) -> str:
    request = Program.checked(Language.parse(language), code, SandboxConfig(), timeout_ms=limit_ms)
    return wrap(
        request,
        GuestJob(**job),
        EndpointProfile(),
        NONCE,
        max_output_bytes=max_output_bytes,
        begin_within_ms=begin_within_ms,
    )


def run(
    code: str, language: str, folder: Path, limit_ms: int = 5_000, max_output_bytes: int = 10_000, **job: Any
) -> tuple[GuestReport, subprocess.CompletedProcess[str]]:
    """Wrap a program, and run it from a file."""
    text = wrapped(code, language, limit_ms=limit_ms, max_output_bytes=max_output_bytes, **job)
    file = folder / ("program.py" if language == "python" else "program.js")
    file.write_text(text)
    command = [sys.executable, "-I"] if language == "python" else [deno.find_deno_bin(), "run", "-A", "--quiet"]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60)
    return read(done.stdout, done.stderr, limit=max_output_bytes), done


@pytest.mark.parametrize(
    ("code", "language"),
    [
        (
            block("""
                print('said')
                return_val(5)
            """),
            "python",
        ),
        ("console.log('said'); return_val(5);", "javascript"),
    ],
)
def test_guest_prints_only_frames(code: str, language: str, tmp_path: Path) -> None:
    """The frame is where the server looks for the return value. Output of the program is only inside the frame."""
    report, done = run(code, language, tmp_path)
    assert report.final
    assert report.records[0].texts == {"stdout": "said\n", "stderr": "", "ret_val": "5"}
    assert "said" not in done.stdout
    start = take_frames({"stderr": done.stderr}, NONCE, 1_000)
    assert start == (GuestReport(started=True), {"stderr": ""})
    lines = done.stdout.split("\n")
    if language == "python":
        assert read(lines[0]) == GuestReport(started=True)
        assert (lines[1], lines[3:]) == ("__COZE_RETURN_VAL_START__", ["__COZE_RETURN_VAL_END__", ""])
    else:
        assert lines[1].startswith('{"stdout":"","stderr":"","ret_val":"faasrt1:')


def test_progress_of_cases_is_written_to_stderr(tmp_path: Path) -> None:
    """The record of each case is written when it ends, so it is known even if a later case kills the process."""
    code = block("""
        import os, signal
        def f(x):
            if x == 2: os.kill(os.getpid(), signal.SIGKILL)
            return x
    """)
    cases = [f"[[{number}], {{}}]" for number in range(4)]
    report, done = run(code, "python", tmp_path, function="f", cases=cases, single=False, begin_within_ms=1_000.0)
    assert done.returncode == -9
    assert report.started
    assert not report.final
    assert {index: record.texts["ret_val"] for index, record in report.records.items()} == {-1: "", 0: "0", 1: "1"}


def test_threads_that_never_end_are_stopped(tmp_path: Path) -> None:
    """At the time limit, the guest program writes the frame to stdout and stderr, and exits."""
    code = block("""
        import threading
        def f():
            while True: pass
        threading.Thread(target=f).start()
    """)
    report, done = run(code, "python", tmp_path, limit_ms=300)
    assert report.records[0].outcome is Outcome.TIMEOUT
    assert done.returncode == 1
    for stream in (done.stdout, done.stderr):
        assert read(stream).final


def test_guest_restores_the_state_of_the_interpreter(tmp_path: Path) -> None:
    """The server uses the process afterwards, so the guest program restores streams, modules and builtins."""
    code = block("""
        import builtins, json, os, sys
        builtins.print = sys.stdout = sys.stdin = None
        sys.setrecursionlimit(99)
        assert (os.read(0, 9), json.x) == (b'in', 1)
        del builtins.len
    """)
    given = ProgramInput.checked(Language.PYTHON, stdin="in", files={"json.py": "x = 1"}, collect=["*.py"])
    text = wrapped(code, "python", limit_ms=1_000, max_output_bytes=1_000, input=given)
    file = tmp_path / "host.py"
    file.write_text(
        "import sys, os, asyncio, json\n"
        "def state():\n"
        "    names = sys.modules['__main__'], sys.modules['json'], os.getcwd(), list(sys.path), os.fstat(0).st_ino\n"
        "    return names, sys.stdin, sys.stdout, sys.getrecursionlimit(), os.read, os.write, os._exit\n"
        "before = state()\n"
        f"async def main():\n    exec({text!r}, {{}})\n    asyncio.get_running_loop()\nasyncio.run(main())\n"
        "print('same' if before == state() and len('x') else 'other')\n"
    )
    done = subprocess.run([sys.executable, "-I", str(file)], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "same", done.stderr
    record = read(done.stdout).records[0]
    assert (record.outcome, record.files) == (Outcome.OK, {"json.py": b"x = 1"})


def test_wrapped_programs_are_not_changed_by_the_server() -> None:
    """python-faas escapes newlines between quotes, so no quotes span lines. Comments are removed."""
    text = wrapped("# don't\nprint('''a\nb''')\n", "python", limit_ms=1_000, max_output_bytes=1_000)
    assert mangle(text) == text
    assert text.rstrip().splitlines()[-1].startswith("_faasrt = ")
    script = wrapped("1", "javascript", limit_ms=1_000, max_output_bytes=1_000)
    assert not [line for line in script.splitlines() if line.lstrip().startswith("//")]


@pytest.mark.servers
def test_the_guard_does_not_count_the_wait_for_a_cpu(tmp_path: Path) -> None:
    """Where the server does not stop cases, one that needs less CPU time than its limit ends beside other processes."""
    code = block("""
        import time
        def f(seconds):
            until = time.process_time() + seconds
            while time.process_time() < until: pass
    """)
    cpus = os.sched_getaffinity(0)
    cpu = min(cpus)
    os.sched_setaffinity(0, [cpu])  # the guest program inherits this
    try:
        with busy_processes(3, cpu):
            job = {"function": "f", "cases": ["[[0.3], {}]", "[[1], {}]"], "single": False}
            report, _ = run(code, "python", tmp_path, limit_ms=600, begin_within_ms=300_000.0, **job)
    finally:
        os.sched_setaffinity(0, cpus)
    outcomes = {index: record.outcome for index, record in report.records.items()}
    assert outcomes == {-1: Outcome.OK, 0: Outcome.OK, 1: Outcome.TIMEOUT}
