"""Nothing of a program is left for the next one that runs in the same jail.

A slot is a jail in which one program runs after another. The pids of its programs count up by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from faasrt import Outcome, ServerError
from support.levels import NATIVE
from support.native_attacks import IN_FLIGHT, KEPT_SLOTS, LOST_SLOTS, PRELUDE
from support.served import until
from support.threats import PLACES, USERS, Host, host_of, sample

pytestmark = [pytest.mark.asyncio(loop_scope="session"), NATIVE]
# A program waits for the slots of at most so many others: those that are warm, and those whose programs have ended.
_TURNS, _MAX_TURNS = 6, 50
# In a pod, slots begin with similar pids. The number of a namespace is only used again when it has ended.
_SLOT = "os.readlink('/proc/self/ns/pid'), os.getpid()"


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=PLACES)
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    async with host_of(*request.param) as one:
        yield one


async def _leave(host: Host, leave: str, look: str, *, until_reused: bool = False) -> tuple[bool, bool]:
    """Run a program that tries to leave something, and then others that look for it: a few, or until one runs in the
    same slot.

    Return whether it could do its part, and whether one of the others ran in the same slot. That one must not find
    anything. The others may find a lock on a file that all programs see, but only as long as its holder is ending.
    """
    indented = leave.strip().replace("\n", "\n    ")
    result = await host.run(
        f"{PRELUDE}\nprint({_SLOT}, flush=True)\ntry:\n    {indented}\nexcept OSError as error: print(error)"
    )
    namespace, pid, *failed = result.stdout.split(maxsplit=2)
    reused = False
    for turn in range(_MAX_TURNS):
        code = f"{PRELUDE}\ntry: found = bool({look})\nexcept BlockingIOError: found = True\nprint({_SLOT}, found)"
        found = await host.run(code)
        assert found.outcome is Outcome.OK, found
        other, other_pid, was_found = found.stdout.split()
        in_same_slot = other == namespace and int(other_pid) == int(pid) + 1
        reused = reused or in_same_slot
        if was_found == "False":
            if reused if until_reused else turn >= _TURNS:
                break
        else:
            assert not in_same_slot, found
            assert turn < _MAX_TURNS - 1, found
    return not failed, reused


@pytest.mark.parametrize("name", sample(KEPT_SLOTS, 3))
async def test_what_ends_with_a_process_is_not_there_for_the_next_program(host: Host, name: str) -> None:
    """The next program runs in the same slot, and finds nothing. Once in a while, a slot has run its last program."""
    attempts = [await _leave(host, *KEPT_SLOTS[name], until_reused=True) for _ in range(2)]
    assert all(left for left, _ in attempts)
    assert any(reused for _, reused in attempts)


@pytest.mark.parametrize("name", sample(LOST_SLOTS, 3))
async def test_a_slot_with_a_trace_of_a_program_is_not_used_again(host: Host, name: str) -> None:
    """The next programs run in other slots, and find nothing."""
    left, reused = await _leave(host, *LOST_SLOTS[name])
    # As root, the folders belong to another user, so that a program cannot change them.
    assert not reused or (not left and not host.server.uids().real)


@pytest.mark.parametrize("name", sample(IN_FLIGHT, 2))
async def test_sockets_that_were_sent_to_each_other_are_not_there_for_the_next_program(host: Host, name: str) -> None:
    """The kernel collects them, with what they hold, at some time after the end of their process."""
    left, _ = await _leave(host, *IN_FLIGHT[name])
    assert left


@pytest.mark.attacks
@pytest.mark.parametrize("user", USERS)
async def test_at_the_level_filters_nothing_is_left(user: str) -> None:
    """There each program has a process of its own, and no slot."""
    async with host_of(user, "filters") as host:
        for leave, look in {**KEPT_SLOTS, **LOST_SLOTS, **IN_FLIGHT}.values():
            if "statvfs" in look:  # of the disk of the machine
                continue
            # Most calls that look for something are denied there.
            look = f"__import__('contextlib').suppress(OSError) and False or ({look})"
            code = f"{PRELUDE}\ntry: found = bool({look})\nexcept OSError: found = False\nprint(found)"
            await host.run(f"{PRELUDE}\n{leave}")
            for _ in range(2):
                assert (await host.run(code)).stdout == "False\n", leave


async def test_the_launcher_in_the_memory_of_a_program_shows_no_other_program(host: Host) -> None:
    """A program is a fork of the launcher. It finds that object, but no record of programs or folders of the server."""
    code = """
import types
def subclasses(kind):
    for each in type.__subclasses__(kind):
        yield each
        yield from subclasses(each)
serve = next(each for each in subclasses(object) if each.__name__ == 'Launcher').serve
launcher = serve.__globals__['_kept'][0].f_locals['launcher']
config = launcher._config
objects = [launcher, launcher._jails, launcher._restrictions, launcher._memory]
records = {name for each in objects for name, value in vars(each).items() if isinstance(value, (dict, list)) and value}
print(sorted(records), 'root' in config)
"""
    busy = [asyncio.create_task(host.run("import time; time.sleep(0.5)")) for _ in range(3)]
    result = await host.run(code)
    assert result.stdout == "['_config'] False\n", result
    await asyncio.gather(*busy)


async def test_slots_begin_with_random_numbers(host: Host) -> None:
    """Neither the pid nor the inode numbers of a program show how many programs there were before it."""
    code = f"{PRELUDE}\nprint(os.getpid(), os.stat('main.py').st_ino)\nos.waitpid(os.fork() or os._exit(0), 0)"
    found = [(await host.run(code)).stdout.split() for _ in range(8)]
    pids, inodes = ({numbers[at] for numbers in found} for at in (0, 1))
    assert len(pids) > (2 if host.in_pod else 6)
    assert len(inodes) > 4


def _templates(host: Host) -> dict[psutil.Process, list[psutil.Process]]:
    """Return the first processes of the slots, with the processes that they have started."""
    found = {}
    for process in host.server.children(recursive=True):
        with contextlib.suppress(OSError, psutil.Error):
            status = Path(f"/proc/{process.pid}/status").read_text()
            if next(line.split()[3:] for line in status.splitlines() if line.startswith("NSpid:")) == ["1"]:
                found[process] = process.children()
    return found


def _all_wait(host: Host) -> bool:
    """Return whether the slots of both workers have a process that waits for a program."""
    return sum(map(bool, _templates(host).values())) == 2


async def test_the_end_of_a_template_is_an_error_of_the_server(host: Host) -> None:
    """A program cannot end its template. So if that was killed, the program has no result. Later programs run."""
    code = "print('on', flush=True)\nwhile True: pass"
    async with host.manager.stream_code(code, "python", timeout_ms=20_000) as run:
        assert (await anext(aiter(run))).text == "on\n"
        await until(lambda: _busy(host))
        _busy(host)[0].kill()
        with pytest.raises(ServerError, match="the process that started it has ended"):
            async for _ in run:
                pass
    for template in _templates(host):
        template.kill()
    for _ in range(4):
        # The server may give a program to a process that is just ending with its template.
        result = await host.manager.run_code("print('well')", "python", idempotent=True)
        assert result.stdout == "well\n"


async def test_a_template_that_was_stopped_is_an_error_of_the_server(host: Host) -> None:
    """It does not report how a program has ended, so the program has no result. Later programs run."""
    await host.run("1")
    await until(lambda: _all_wait(host))
    for template in _templates(host):
        template.suspend()
    with pytest.raises(ServerError, match="the process that started it has ended"):
        await host.run("1 / 0")
    for _ in range(4):
        assert (await host.run("print('well')")).stdout == "well\n"


def _busy(host: Host) -> list[psutil.Process]:
    """Return the templates whose program computes."""
    found = []
    for template, programs in _templates(host).items():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(sum(program.cpu_times()[:2]) > 0.2 for program in programs):
                found.append(template)
    return found


async def test_a_program_cannot_starve_its_template(host: Host) -> None:
    """The template ends the many processes of a program that has ended, and does so soon."""
    code = f"""{PRELUDE}
for _ in range(25):
    if not os.fork():
        while True: pass
print('forked')
"""
    before = {process.pid for process in host.server.children(recursive=True)}
    result = await host.run(code, 20_000)
    assert (result.outcome, result.stdout) == (Outcome.OK, "forked\n")
    await until(lambda: len({p.pid for p in host.server.children(recursive=True)} - before) < 10)


async def test_a_template_waits_for_orphans_while_their_program_runs(host: Host) -> None:
    """Otherwise they would count for the limit of processes after their end."""
    code = f"""{PRELUDE}
for _ in range(100):
    if not (child := os.fork()):
        os.fork()
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.002)
print('forked')
"""
    result = await host.run(code)
    assert (result.outcome, result.stdout) == (Outcome.OK, "forked\n"), result


async def test_a_signal_from_outside_does_not_reach_a_template(host: Host) -> None:
    """The kernel drops all but SIGKILL and SIGSTOP for the first process of a namespace that has no handlers."""
    await host.run("1")
    await until(lambda: _all_wait(host))
    # One without a process that waits is just ending, after many programs.
    templates = [template for template, programs in _templates(host).items() if programs]
    for template in templates:
        for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
            template.send_signal(number)
    # A signal that was not dropped is pending, or has ended the process. This is known before a template can end for
    # another reason.
    for template in templates:
        status = Path(f"/proc/{template.pid}/status").read_text()
        assert re.search(r"^State:\t[RS]", status, re.MULTILINE), status
        assert len(re.findall(r"^S(?:ig|hd)Pnd:\t0+$", status, re.MULTILINE)) == 2, status
    assert (await host.run("print('well')")).stdout == "well\n"
