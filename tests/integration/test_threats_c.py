"""Programs in C cannot escape their jail or exceed its limits, and source code cannot attack the compiler."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from faasrt import Outcome
from support.c_attacks import (
    BOUNDED,
    DENIED,
    ENDS,
    LOCKED_MEMORY,
    MEMORY,
    ON_THE_COMPILER,
    PRELUDE,
    SHARED_MEMORY,
    attempt,
)
from support.native_host import USERS, Host, host_of
from support.served import until
from support.threats import SECRET, only_with_attacks, sample

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed (package gcc)"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=[USERS[0], only_with_attacks(USERS[1])])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    async with host_of(request.param, "namespaces", "c") as one:
        yield one


def program(body: str) -> str:
    return f"{PRELUDE}\nint main(void) {{ long n = 0;\n{body}\n}}"


@pytest.mark.parametrize("name", sample(DENIED))
async def test_the_jail_denies_each_attack(host: Host, name: str) -> None:
    """Each attack in the table fails, and nothing is sent to the host."""
    result = await host.run(attempt(DENIED[name]))
    assert (result.outcome, result.stdout.split(maxsplit=1)[:1]) == (Outcome.OK, ["denied"]), result
    assert await host.sink.all_received() == []


async def test_the_attacked_cache_exists(host: Host) -> None:
    """The server has compiled programs into the folder that some attacks try to reach."""
    assert (await host.run(program('printf("x");'))).stdout == "x"
    assert list(Path(host.words["CACHE"]).rglob("*"))


async def test_an_attack_succeeds_outside_of_the_jail(host: Host, tmp_path: Path) -> None:
    """This shows that the test of the table can fail."""
    (tmp_path / "main.c").write_text(attempt(DENIED["read a file"]).replace("CANARY", host.words["CANARY"]))
    command = ["gcc", "-w", "-o", str(tmp_path / "main"), str(tmp_path / "main.c")]
    await asyncio.to_thread(subprocess.run, command, check=True)
    process = await asyncio.to_thread(subprocess.run, [str(tmp_path / "main")], capture_output=True, text=True)
    assert process.stdout.startswith("reached")


@pytest.mark.parametrize("name", sample(MEMORY))
async def test_all_memory_counts_against_the_limit(host: Host, name: str) -> None:
    result = await host.run_with_neighbour(program(MEMORY[name]))
    assert result.outcome is Outcome.MEMORY_LIMIT, result


async def test_a_program_cannot_prevent_the_count_of_its_memory(host: Host) -> None:
    """The launcher does not wait for it, so other programs start, run and end."""
    hostile = asyncio.create_task(host.run(f"{PRELUDE}{LOCKED_MEMORY}", 6_000))
    while not hostile.done():
        assert (await host.run(program('puts("well");'))).stdout == "well\n"
    # At its time limit only if the thread has not got any CPU time.
    assert (await hostile).outcome in (Outcome.MEMORY_LIMIT, Outcome.TIMEOUT)


async def test_memory_that_processes_share_counts_once(host: Host) -> None:
    result = await host.run(f"{PRELUDE}{SHARED_MEMORY}")
    assert result.outcome is Outcome.OK, result


@pytest.mark.parametrize("name", sample(BOUNDED, 2))
async def test_kernel_resources_are_limited(host: Host, name: str) -> None:
    """A program gets a limited number of processes, threads, descriptors and files. Other programs run meanwhile."""
    body, most = BOUNDED[name]
    result = await host.run_with_neighbour(program(f'{body}\nprintf("%ld\\n", n); fflush(stdout); _exit(0);'))
    assert result.outcome is Outcome.OK, result
    assert 0 < int(result.stdout) <= most


@pytest.mark.parametrize("name", sample(ENDS, 2))
async def test_no_process_of_a_program_outlives_it(host: Host, name: str) -> None:
    """However a program ends, or if it is ended at its time limit, its process is gone."""
    code, outcome = ENDS[name]
    result = await host.run_with_neighbour(program(code), 1_000)
    assert result.outcome is outcome, result
    pid = int(str(result.metadata["instance_id"]).rpartition("-")[2])
    await until(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("name", sample(ON_THE_COMPILER, 3))
async def test_source_code_cannot_attack_the_compiler(host: Host, name: str) -> None:
    """It is a SYNTAX_ERROR, whose output contains no secret, and other programs run meanwhile."""
    result = await host.run_with_neighbour(ON_THE_COMPILER[name])
    assert result.outcome is Outcome.SYNTAX_ERROR, result
    assert SECRET not in repr(result)


async def test_attacks_leave_no_processes(host: Host) -> None:
    """After many programs at once, the server has only its launcher and the processes that wait for a program."""
    await asyncio.gather(*(host.run(program(code), 500) for code, _ in ENDS.values()))
    await until(lambda: len(host.server.children(recursive=True)) <= 12)
