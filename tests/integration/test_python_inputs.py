"""Standard input, arguments and files of Python programs: the same on both engines and with the guest program."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from faasrt import Outcome, RuntimeManager, SandboxConfig
from faasrt.protocol.health import EndpointProfile
from support.doubles import PythonFaas
from support.helpers import WASM, manager_for, url_of
from support.input_programs import PROGRAMS, encode_inputs, run_whole_cases
from support.levels import NATIVE
from support.tables import block, first_of

pytestmark = pytest.mark.asyncio(loop_scope="session")
CASES = block("""
    import sys
    print(input())
    def f(x):
        return [x, input(), open('a').read(), sys.stdin.read()]
""")
HOSTILE = """
import os
open('a', 'w').write('1')
def attempt(action, *arguments):
    try:
        action(*arguments)
    except (OSError, AttributeError, ValueError):
        pass  # not possible in this sandbox
attempt(os.symlink, '/etc/passwd', 'link')
attempt(os.symlink, '/etc', 'folder')
attempt(os.symlink, '.', 'loop')
attempt(lambda: os.mkfifo('pipe'))
attempt(lambda: open(b'\\xff', 'w').close())
attempt(lambda: open('sparse', 'wb').truncate(50_000_000))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def double_url() -> AsyncIterator[str]:
    """Yield the URL of a double of python-faas."""
    async with PythonFaas(slots=2) as faas:
        yield faas.url


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def double(double_url: str) -> AsyncIterator[RuntimeManager]:
    """Yield a manager for the double of python-faas."""
    async with manager_for(double_url) as manager:
        yield manager


@pytest.fixture(params=first_of(["native", "wasm", "double"]))
def place(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def manager(place: str, local: RuntimeManager, local_wasm: RuntimeManager, double: RuntimeManager) -> RuntimeManager:
    return {"native": local, "wasm": local_wasm, "double": double}[place]


@pytest.mark.parametrize("name", PROGRAMS)
async def test_programs_have_the_same_input_everywhere(manager: RuntimeManager, name: str) -> None:
    """Outcome, output and collected files are as in the table."""
    program = PROGRAMS[name]
    result = await manager.run_code(program.code, "python", **program.options)
    assert result.outcome is program.outcome, result
    if program.outcome is not Outcome.OUTPUT_LIMIT:
        assert (result.stdout, "files" in result.truncated) == (program.stdout, program.truncated), result
    assert {path: data for path, data in result.files.items() if "__pycache__" not in path} == program.files


@pytest.mark.parametrize("isolate", [False, True])
async def test_definitions_and_cases_read_the_input_from_its_start(
    place: str, manager: RuntimeManager, isolate: bool
) -> None:
    """The cases in an execution share the files."""
    runtime = await manager.get_runtime("python")
    options: dict[str, Any] = {"stdin": "1\n2\n", "files": {"a": "A"}}
    results = await runtime.run_cases(CASES, "f", [(0,), (1,)], isolate=isolate, **options)
    assert [result.value for result in results] == [[0, "1", "A", "2\n"], [1, "1", "A", "2\n"]]
    assert [result.stdout for result in results] == ["1\n", "1\n"]


async def test_cases_read_descriptor_0_from_its_start(manager: RuntimeManager) -> None:
    """This works even where the guest program cannot replace the descriptor, as in WebAssembly without files."""
    code = block("""
        import os
        def f(x):
            return [os.read(0, 2).decode(), os.read(0, 100).decode()]
    """)
    runtime = await manager.get_runtime("python")
    results = await runtime.run_cases(code, "f", [(0,), (1,)], stdin="abcd")
    assert [result.value for result in results] == [["ab", "cd"]] * 2


async def test_functions_have_input(manager: RuntimeManager) -> None:
    """The definitions and the call share the standard input."""
    code = block("""
        def f():
            return [input(), open('a').read()]
    """)
    result = await (await manager.get_runtime("python")).call_function(code, "f", stdin="x\n", files={"a": "A"})
    assert result.value == ["x", "A"]


async def test_nothing_but_regular_files_is_collected(manager: RuntimeManager) -> None:
    """Links are not followed, pipes are not opened, and sparse files are not read."""
    result = await manager.run_code(HOSTILE, "python", collect=["**"])
    assert result.outcome is Outcome.OK, result
    assert result.files == {"a": b"1"}
    assert "files" in result.truncated


async def test_at_most_10000_entries_are_examined(double: RuntimeManager) -> None:
    """A program with more of them does not delay its answer."""
    code = block("""
        import os
        for name in 'ac': open(name, 'w').close()
        for n in range(11_000): os.mkdir(f'b{n}')
    """)
    result = await double.run_code(code, "python", collect=["**"])
    assert result.outcome is Outcome.OK, result
    assert set(result.files) <= {"a"}
    assert result.truncated == {"files"}


async def test_programs_without_files_have_no_folder_in_webassembly(local_wasm: RuntimeManager) -> None:
    """Standard input and arguments alone do not change what a program sees of files."""
    code = block("""
        import os, sys
        print(os.getcwd(), sys.path[0], os.path.exists('/tmp'))
        open('x', 'w')
    """)
    for options in ({}, {"stdin": "a", "argv": ["b"]}):
        result = await local_wasm.run_code(code, "python", **options)
        assert (result.outcome, result.stdout) == (Outcome.USER_ERROR, "/ /usr/local/lib/python315.zip False\n")


FULL = """
import os
def attempt(action, *arguments):
    try:
        return action(*arguments)
    except OSError as error:
        print(error.strerror)
def fill():
    for number in range(100):
        with open(f'f{number}', 'wb') as file:
            file.write(bytes(2**20))
attempt(fill)
print(len(os.listdir()))
for name in os.listdir(): os.remove(name)
def fill_with_folders():
    for number in range(100_000): os.mkdir(str(number))
attempt(fill_with_folders)
print(len(os.listdir()))
for name in os.listdir(): os.rmdir(name)
attempt(open, 'x' * 256, 'w')
def dig():
    for number in range(1000):
        os.mkdir('d' * 200)
        os.chdir('d' * 200)
attempt(dig)
attempt(open, '/etc/passwd')
attempt(open, '/tmp/../etc/passwd')
attempt(open, '../../../../etc/passwd')
attempt(os.chdir, '/etc')
attempt(os.symlink, '/etc/passwd', 'link')
"""
STAGED = """
with open('a', 'wb') as file: file.write(bytes(40 * 2**20))
first = open('a', 'ab')
try:
    second = open('a', 'ab')
except OSError as error:
    print(error.strerror)
try:
    open('b', 'wb').truncate(10**12)
except OSError as error:
    print(error.strerror)
"""


def memory_of(pid: int) -> dict[str, int]:
    """Return the memory of a process in MiB, now and at its peak."""
    found = re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return {name: int(size) // 1024 for name, size in found}


@pytest.mark.parametrize("times", first_of([1, 2]))
async def test_webassembly_programs_cannot_leave_or_overfill_their_folder(wasm_sandbox: None, times: int) -> None:
    """At most 64 MiB of contents, 64 MiB of open files and 10,000 entries, and the memory is free afterwards."""
    sandbox = SandboxConfig(memory_limit_mb=512, timeout_limit_s=60)
    async with RuntimeManager.local(["python"], workers=1, engines=WASM, sandbox=sandbox) as manager:
        result = await manager.run_code("print('warm')", "python")
        pid = int(result.metadata["instance_id"].rpartition("-")[2])
        before = memory_of(pid)["VmRSS"]
        for _ in range(times):
            result = await manager.run_code(FULL, "python", collect=["**"])
            assert result.outcome is Outcome.OK, result
            lines = result.stdout.splitlines()
            full = "No space left on device"
            assert lines[:5] == [full, "65", full, "10000", "Filename too long"], lines
            assert len(lines) == 11, lines
            result = await manager.run_code(STAGED, "python", collect=["**"])
            assert result.stdout == "File too large\nFile too large\n", result
        after = memory_of(pid)
        assert result.metadata["instance_id"] == f"wasm-{pid}"
        assert after["VmRSS"] < before + 100
        assert after["VmHWM"] < before + 512 + 128


async def test_files_are_collected_when_memory_runs_out(python: RuntimeManager) -> None:
    """The host collects them after the program has ended."""
    code = block("""
        open('a', 'w').write('1')
        held = [bytearray(10**7) for _ in range(1000)]
    """)
    result = await python.run_code(code, "python", collect=["*"])
    assert result.outcome is Outcome.MEMORY_LIMIT or (result.error and result.error.name == "MemoryError")
    assert result.files == {"a": b"1"}


async def test_whole_programs_run_as_cases(double_url: str) -> None:
    """Each case has its own input, folder, namespace and record, and an exit ends only its case."""
    code = block("""
        import atexit, os, sys, part
        assert 'seen' not in globals() and not os.path.exists('out')
        seen = 1
        open('out', 'w').write(part.name)
        atexit.register(print, 'bye')
        print(__name__, input(), sys.argv, open('shared').read(), file=sys.stderr)
        sys.exit(int(sys.argv[1]))
    """)
    inputs = [{"stdin": f"in{n}", "argv": [str(n)], "files": {"part.py": f"name = '{n}'"}} for n in range(3)]
    response = await run_whole_cases(double_url, code, encode_inputs(*inputs), files={"shared": "S"}, collect=["o*"])
    assert response.answer.report.final
    for number in range(3):
        result = response.result_of(number)
        assert result.outcome is (Outcome.USER_ERROR if number else Outcome.OK), result
        assert result.exit_code == number
        assert result.stdout == "bye\n"
        assert result.stderr == f"__main__ in{number} ['main.py', '{number}'] S\n"
        assert result.files == {"out": str(number).encode()}


@NATIVE
async def test_whole_programs_run_as_cases_in_the_embedded_faas(local: RuntimeManager) -> None:
    """The guest program gives each case a copy of the shared files, although the server can pass files on."""
    code = block("""
        import os, sys
        open('a', 'a').write(input())
        print(open('a').read(), sys.argv, os.listdir('d'))
    """)
    inputs = [{"stdin": str(n), "argv": ["x"] * n} for n in range(3)]
    url = url_of(local)
    profile = EndpointProfile(
        lossless=True, enforces_timeouts=True, input_fields={"python": frozenset({"stdin", "argv", "files", "collect"})}
    )
    files = {"a": "A", "d/b": ""}
    response = await run_whole_cases(url, code, encode_inputs(*inputs), profile=profile, files=files, collect=["a"])
    for number in range(3):
        result = response.result_of(number)
        assert result.stdout == f"A{number} {['main.py'] + ['x'] * number} ['b']\n", result
        assert result.files == {"a": f"A{number}".encode()}


@NATIVE
async def test_files_of_whole_programs_fit_into_a_frame(local: RuntimeManager) -> None:
    """A frame is the return value of an embedded FaaS, which cuts longer ones. Larger files are left out."""
    code = block("""
        import os, sys
        print('x' * 2_000_000)
        print('x' * 2_000_000, file=sys.stderr)
        return_val('x' * 2_000_000)
        for name, size in (('a', 300_000), ('b', 700_000)): open(name, 'wb').write(os.urandom(size))
    """)
    url = url_of(local)
    profile = EndpointProfile(lossless=True, enforces_timeouts=True)
    response = await run_whole_cases(url, code, encode_inputs({"collect": ["*"]}), profile=profile)
    result = response.result_of(0)
    assert result.outcome is Outcome.OK
    assert {name: len(data) for name, data in result.files.items()} == {"a": 300_000}
    assert result.truncated == {"stdout", "stderr", "ret_val", "files"}


async def test_a_case_at_its_time_limit_ends_the_execution(double_url: str) -> None:
    """Its record and those of earlier cases are kept. Cases that did not begin have no record."""
    code = block("""
        import time
        word = input()
        print(word)
        if word == 'loop':
            while True: time.sleep(0.01)
    """)
    inputs = [{"stdin": word} for word in ("a", "loop", "b")]
    response = await run_whole_cases(double_url, code, encode_inputs(*inputs), timeout_ms=1_500)
    assert [response.result_of(index).outcome for index in response.answer.report.records] == ["OK", "TIMEOUT"]
    assert response.answer.report.is_complete


@pytest.mark.parametrize(
    ("code", "outcomes"),
    [
        (
            block("""
                import os
                if input() == 'x': os._exit(2)
            """),
            ["OK", "CRASHED"],
        ),
        (
            block("""
                import os
                if input() == 'x': os.fork()
            """),
            ["OK", "OK", "OK"],
        ),
        ("if input() == 'x': raise ValueError", ["OK", "USER_ERROR", "OK"]),
        ("if input() == 'x': return_val(1)\nelse: def", ["SYNTAX_ERROR"] * 3),
        (
            block("""
                import builtins
                if input() == 'x': del builtins.print, builtins.len
            """),
            ["OK", "OK", "OK"],
        ),
        (
            block("""
                import os, sys
                if input() == 'x': os.chdir('/'), sys.path.clear(), os.close(0)
            """),
            ["OK", "OK", "OK"],
        ),
        (
            block("""
                import sys
                if input() == 'x': sys.stdin.close(), sys.stdout.close()
            """),
            ["OK", "OK", "OK"],
        ),
        (
            block("""
                import os, shutil
                if input() == 'x': shutil.rmtree(os.getcwd())
            """),
            ["OK", "OK", "OK"],
        ),
    ],
)
async def test_later_cases_run_after_a_case_that_fails(double_url: str, code: str, outcomes: list[str]) -> None:
    """Only a case that ends the process prevents the later cases."""
    response = await run_whole_cases(double_url, code, encode_inputs({"stdin": "a"}, {"stdin": "x"}, {"stdin": "b"}))
    assert [response.result_of(index).outcome for index in response.answer.report.records] == outcomes


async def test_the_guest_program_removes_its_folders(double_url: str) -> None:
    """No file of a program is left on the server."""
    code = block("""
        import os
        print(os.getcwd(), end='')
        os.makedirs('a/b')
        os.symlink('/', 'a/link')
        open('a/b/c', 'w').close()
    """)
    response = await run_whole_cases(double_url, code, encode_inputs({"stdin": "a"}, {"files": {"x": ""}}))
    folders = [response.result_of(index).stdout for index in (0, 1)]
    assert len(set(folders)) == 2
    for folder in folders:
        assert Path(folder).name.startswith("faasrt-")
        assert not Path(folder).exists()
