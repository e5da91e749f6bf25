"""The ids of a jail: if the server runs as root, each jail has a block of uids that no other running jail has."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import subprocess
import sys

import pytest

from faasrt.local.jail.launcher import namespaces
from support.levels import NATIVE

pytestmark = NATIVE

# In a container with room for the ids of two jails, start and stop a server with one jail.
_SERVER = """
import asyncio, os, sys, psutil
from faasrt.local import LocalFaaS
from faasrt.local.jail.launcher import namespaces
def take(count):
    blocks, locks = zip(*[((first, used), lock) for first, used, lock in (namespaces.host_ids() for _ in range(count))])
    for lock in locks:
        os.close(lock)
    return {*blocks}
async def main():
    async with LocalFaaS(["js"], workers=1, level=sys.argv[1]) as faas:
        await faas.wait_ready("js")
        uids = {process.uids().real for process in psutil.Process().children(recursive=True)} - {0}
        left = take(1) | take(1) | take(1) | take(1)
        assert uids and len(left) == 1, (uids, left)
        assert not any(first <= uid < first + used for uid in uids for first, used in left)
    while len(take(2)) < 2:  # until the kernel has ended the jail
        await asyncio.sleep(0.01)
asyncio.run(main())
"""


def _maps(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(namespaces, "open", lambda *_, **__: io.StringIO(text), raising=False)


@pytest.mark.parametrize("count", [10, 11, 19, 20, 100, 5_000, 65_536, 1_000_000])
def test_a_jail_takes_its_ids_from_the_upper_half_of_a_small_range(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """All ids belong to the container, none is that of its root, and at least four programs have ids of their own."""
    _maps(monkeypatch, f"         0     100000 {count:>10}\n")
    for _ in range(200):
        first, used, lock = namespaces.host_ids()
        os.close(lock)
        assert used >= 5
        assert count // 2 <= first
        assert first + used <= count


def test_a_jail_refuses_a_range_with_too_few_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    _maps(monkeypatch, "         0     100000          9\n")
    with pytest.raises(OSError, match="too few user ids in this container: the jail needs at least 10"):
        namespaces.host_ids()


@pytest.mark.parametrize("count", [65_536, 2**32 - 1])
def test_a_jail_takes_a_random_block_of_ids(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Jails that cannot see each other's locks have distinct ids, or with a small probability the same ids."""
    _maps(monkeypatch, f"         0     100000 {count:>10}\n")
    blocks = set()
    for _ in range(500):
        first, used, lock = namespaces.host_ids()
        os.close(lock)
        blocks.add((first, used))
    assert len(blocks) > 50
    _assert_apart(blocks)


def test_jails_that_run_at_the_same_time_have_distinct_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all blocks are in use, jails share them. The block of a jail that has ended is free again."""
    start = os.getpid() % 20_000 * 65_536  # other tests take ids at the same time
    _maps(monkeypatch, f"{start:>10}     100000      65536\n")
    with contextlib.ExitStack() as stack:

        def take() -> tuple[int, int, contextlib.ExitStack]:
            first, used, lock = namespaces.host_ids()
            release = stack.enter_context(contextlib.ExitStack())
            release.callback(os.close, lock)
            return first, used, release

        jails = [take() for _ in range(128)]
        blocks = {(first, used) for first, used, _ in jails}
        assert len(blocks) == 128
        _assert_apart(blocks)
        assert take()[:2] in blocks
        first, _, ended = jails[77]
        ended.close()
        assert take()[0] == first


def test_jails_that_cannot_share_ids_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take neither those of a running jail, nor those of processes that a killed jail has left."""
    start = (20_000 + os.getpid() % 20_000) * 100  # other tests take ids at the same time

    def take(*used_uids: int) -> tuple[int, int, int]:
        _maps(monkeypatch, f"{start:>10}     100000         40\n")
        return namespaces.host_ids(used_uids)

    first, used, lock = take(0, start)
    second, _, other_lock = take(0, start)
    assert {first, second} == {start + 20, start + 30}
    with pytest.raises(OSError, match="use all user ids"):
        take()
    os.close(lock)
    os.close(other_lock)
    for uid in (first, first + used - 1):
        taken, _, lock = take(0, uid)
        os.close(lock)
        assert taken == second
    with pytest.raises(OSError, match="use all user ids"):
        take(first, second)


def _assert_apart(blocks: set[tuple[int, int]]) -> None:
    assert all(first + used <= second for (first, used), (second, _) in itertools.pairwise(sorted(blocks)))


@pytest.mark.skipif(os.getuid() != 0, reason="only the jails of root have uids of their own")
@pytest.mark.parametrize("level", ["namespaces", "filters"])
def test_a_jail_keeps_its_ids_while_it_runs(level: str) -> None:
    """Another jail in the same container gets other ids, until the first one has ended."""
    container = ["unshare", "--user", "--map-users=0,0,40", "--map-groups=0,0,40", "--net"]
    if subprocess.run([*container, "true"]).returncode != 0:
        pytest.skip("no user namespaces here")
    subprocess.run([*container, sys.executable, "-c", _SERVER, level], check=True)
