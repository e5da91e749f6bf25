"""Programs that end with SIGKILL while their server lacks memory. Without cgroups, the kernel does not say why."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faasrt import ExecutionResult, Outcome, RuntimeManager, SandboxConfig, ServiceError
from support.helpers import manager_for
from support.levels import NATIVE
from support.served import until

pytestmark = NATIVE

_CGROUPS = Path("/sys/fs/cgroup/memory")  # version 1, in which the server creates no cgroups
_SPARE_BYTES, _SANDBOX = 100 * 2**20, SandboxConfig(memory_limit_mb=512)
_SERVER = """
import asyncio, sys
from faasrt.local import LocalFaaS
async def main():
    async with LocalFaaS(["python", "js"], workers=1, engines={"python": "native"}) as faas:
        for language in ("python", "js"):
            await faas.wait_ready(language)
        print(faas.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""
_USE = "kept = [bytearray(b'x' * 2**20) for _ in range(300)]"
_USE_IN_CHILD = f"""
import os, time
if not os.fork():
    time.sleep(0.3)
    {_USE}
os.wait()
os.kill(os.getpid(), 9)
"""
# The child is killed before it can be seen. Nobody waits for it, so its peak of memory is unknown.
_USE_AT_ONCE_IN_CHILD = """
import mmap, os
done, end = os.pipe()
if not os.fork():
    kept = mmap.mmap(-1, 300 * 2**20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.madvise(14)
    for at in range(0, 300 * 2**20, 2**12): kept[at] = 1
os.close(end)
os.read(done, 1)
os.kill(os.getpid(), 9)
"""
_USE_AFTER_THREADS = f"""
import threading, time
for _ in range(10): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
time.sleep(1)
{_USE}
"""
# Each of these processes uses less memory than the server.
_USE_IN_CHILDREN = """
import os
done, end = os.pipe()
for _ in range(40):
    if not os.fork():
        os.close(end)
        kept = bytearray(b'x' * 5 * 2**20)
        os.read(done, 1)
        os._exit(0)
os.wait()  # until the kernel has killed one of them
os.close(end)
while True:
    try: os.wait()
    except ChildProcessError: break
"""


@pytest.fixture
async def cgroup() -> AsyncIterator[Path]:
    folder = _CGROUPS / f"faasrt-tests-{os.urandom(4).hex()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this user cannot create a cgroup of version 1")
    try:
        yield folder
    finally:
        await until(lambda: _remove(folder))


def _remove(cgroup: Path) -> bool:
    """Remove a cgroup, and return whether all of its processes had ended."""
    try:
        cgroup.rmdir()
    except OSError:
        return False
    return True


@contextlib.asynccontextmanager
async def _short_of_memory(cgroup: Path) -> AsyncIterator[RuntimeManager]:
    """Yield a manager for a server that has only 100 MiB for its programs, less than their limit."""
    command = ["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', str(cgroup / "cgroup.procs"), sys.executable]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "-c", _SERVER], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            url = (await asyncio.to_thread(process.stdout.readline)).strip()
            used = int((cgroup / "memory.usage_in_bytes").read_text())
            (cgroup / "memory.limit_in_bytes").write_text(str(used + _SPARE_BYTES))
            async with manager_for(url, sandbox=_SANDBOX) as manager:
                yield manager
        finally:
            process.kill() if sys.exc_info()[0] else process.communicate()


def _oom_kills(cgroup: Path) -> int:
    return int((cgroup / "memory.oom_control").read_text().split()[-1])


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        pytest.param(_USE, None, id="within its limit"),
        pytest.param(_USE_IN_CHILD, Outcome.CRASHED, id="after its child was killed"),
        *(
            pytest.param(code, outcome, id=name, marks=pytest.mark.servers)
            for code, outcome, name in [
                (_USE_AFTER_THREADS, None, "with threads within its limit"),
                (_USE_AT_ONCE_IN_CHILD, Outcome.CRASHED, "after its child was killed at once"),
                (_USE_IN_CHILDREN, Outcome.OK, "although children were killed"),
            ]
        ),
    ],
)
async def test_only_a_program_that_cannot_have_caused_the_lack_of_memory_has_no_verdict(
    cgroup: Path, code: str, outcome: Outcome | None
) -> None:
    """A program within its limit gets a ServerError. A program whose child lacks memory may kill itself afterwards.

    The kernel kills processes of programs, not the server.
    """
    async with _short_of_memory(cgroup) as manager:
        try:
            result: ExecutionResult | ServiceError = await manager.run_code(code, "python", 20_000, idempotent=False)
        except ServiceError as error:
            result = error
        assert _oom_kills(cgroup) > 0
        assert getattr(result, "outcome", None) is outcome, result
        if isinstance(result, ServiceError):
            assert "the system has run out of memory" in str(result)
        assert (await manager.run_code("print(1)", "python", 20_000)).ok
